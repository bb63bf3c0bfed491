"""Builds the data of the pack `reasoning`: sums, number theory, counting and word problems with worked solutions.

    python train/data/reasoning.py --out DIR

Writes train.jsonl, valid.jsonl, test.jsonl and meta.json. A training answer is a short worked solution that ends in the
answer; a test line holds the answer alone and `"match": "last_number"`. `task` is the generator's name. Needs the extra
`data`. The same seed gives the same bytes.

The three parts come from distant seeds (neighbouring ones repeat each other's questions), and a question of test or
validation that training has, in whatever phrasing, is dropped. gsm_symbolic has a hundred stories with changing names and
numbers: its test asks known stories about unseen numbers. Where its worked solution cannot be cut down to true
equations or is too long, training has the bare answer.
"""

import argparse
import random
from typing import Any

from build_data import run_builder
from reasoning_families import FAMILIES, LONGEST, Entry, Family, roughly_tokens
from reasoning_phrasings import NEW, SEEN
from split_files import Line

from mbjax.errors import InputError

SEED = 20
DISTANCE = 1_000_000  # between the seeds of the parts: more than any number of questions
TRAIN, VALID, TEST = 1800, 40, 100  # questions of each family
TRAIN_STORIES = 4500  # gsm_symbolic alone has a hundred kinds of questions in one family
DRAWS = 6  # times the wanted number are generated at most, so that small families end, too

SOURCES = [{"name": "reasoning-gym 0.1.25 (PyPI)", "licence": "Apache-2.0", "holds": "procedural generators"}]


def questions(name: str, family: Family, seed: int, n: int, known: set[str]) -> tuple[list[tuple[str, Entry]], int]:
    """At most `n` questions, none twice and none in `known`, each with its identity; and how many were dropped."""
    import reasoning_gym

    generated = reasoning_gym.create_dataset(name, seed=seed, size=DRAWS * n, **family.settings)
    found: dict[str, Entry] = {}
    dropped = 0
    for entry in generated:
        identity = " ".join(sorted(family.slots(entry).values()))  # a pair of numbers is the same either way round
        if identity in known:
            dropped += 1
        else:
            found.setdefault(identity, entry)
        if len(found) == n:
            break
    return list(found.items()), dropped


def train_line(name: str, family: Family, entry: Entry, rng: random.Random) -> Line:
    worked = family.solve(entry)
    if worked is None or roughly_tokens(worked) > LONGEST:
        worked = entry["answer"]
    return {"prompt": rng.choice(SEEN[name]).format(**family.slots(entry)), "answer": worked, "task": name}


def test_line(name: str, family: Family, entry: Entry, rng: random.Random, *, new: bool) -> Line:
    phrasing = rng.choice((NEW if new else SEEN)[name])
    return {
        "prompt": phrasing.format(**family.slots(entry)),
        "answer": entry["answer"],
        "task": name,
        "match": "last_number",
        "phrasing": "new" if new else "seen",
    }


def build(
    *,
    seed: int = SEED,
    n_train: int = TRAIN,
    n_stories: int = TRAIN_STORIES,
    n_valid: int = VALID,
    n_test: int = TEST,
    names: tuple[str, ...] = tuple(FAMILIES),
) -> tuple[dict[str, list[Line]], dict[str, Any]]:
    """The three parts, and what meta.json says of them. Raises InputError where a family has too few questions."""
    rng = random.Random(seed)
    parts: dict[str, list[Line]] = {"train": [], "valid": [], "test": []}
    counts = {}
    for at, name in enumerate(names):
        family, start = FAMILIES[name], seed + 10 * DISTANCE * (at + 1)
        wanted = n_stories if name == "gsm_symbolic" else n_train
        held, _ = questions(name, family, start, n_test + n_valid, set())
        hidden = {identity for identity, _ in held}
        train, dropped = questions(name, family, start + DISTANCE, wanted, hidden)
        if len(held) < n_test + n_valid or len(train) < min(wanted, 3 * len(held)):
            raise InputError(f"{name}: has {len(held)} + {len(train)} different questions; ask for fewer")
        for i, (_, entry) in enumerate(held):
            if i < n_test:
                parts["test"].append(test_line(name, family, entry, rng, new=i < n_test // 2))
            else:
                parts["valid"].append(train_line(name, family, entry, rng))
        parts["train"] += [train_line(name, family, entry, rng) for _, entry in train]
        bare = sum(line["task"] == name and line["answer"] == _bare(line["answer"]) for line in parts["train"])
        counts[name] = {"train": len(train), "test_questions_met_and_dropped": dropped, "without_worked_solution": bare}
    for lines in parts.values():
        rng.shuffle(lines)
    meta = {
        "name": "reasoning",
        "command": f"python train/data/reasoning.py --out DIR --seed {seed}",
        "seed": seed,
        "sources": SOURCES,
        "settings": {name: {key: str(value) for key, value in FAMILIES[name].settings.items()} for name in names},
        "families": counts,
        "tests": {"test.jsonl": "exact match on the last number, by family"},
    }
    return parts, meta


def _bare(answer: str) -> str:
    """The answer itself if it is a lone number, else nothing."""
    return answer if answer.lstrip("-").replace(".", "").isdigit() else ""


def _build(arguments: argparse.Namespace) -> tuple[dict[str, list[Line]], dict[str, Any]]:
    return build(seed=arguments.seed)


if __name__ == "__main__":
    run_builder(__doc__ or "", _build, SEED)
