"""Builds the data of the pack `chat`: small talk in English and simplified Chinese.

    python train/data/chat.py --out DIR

Writes train.jsonl, valid.jsonl, test.jsonl (the true reply among four) and meta.json. Needs the extra `data`. The same
seed gives the same bytes.

The split is by what is said first: every way of saying it (near-duplicates of it, too) and every reply to it is on one
side. The wrong replies of a test line are true replies to other test lines of its language. Programs to write are left
out: they are another pack's subject.
"""

import argparse
import itertools
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from build_data import run_builder
from legal_sources import package_data
from near_duplicates import NEAR, first_of_group
from split_files import Line

from mbjax.errors import InputError

SEED = 20
LANGUAGES = ("english", "chinese")
LEFT_OUT = ("coding",)
ALTERNATIVES = ("emotion", "computers", "ai")  # files whose longer entries list several replies to one utterance
TEST_SHARE, VALID_SHARE = 0.3, 0.06  # of the utterances of each language
REPLIES = 2  # of one utterance in the test, at most
CHOICES = 4
COPIES = 4  # of a training pair, each written another way
LONGEST = 400  # characters of a reply

SOURCES = [{"name": "chatterbot-corpus 1.3.3 (PyPI)", "licence": "BSD-3-Clause", "holds": "conversations by topic"}]

Pair = tuple[str, str, str]  # language, utterance, reply


def read_pairs(root: Path, languages: tuple[str, ...] = LANGUAGES) -> list[Pair]:
    """Utterance and reply of every neighbouring pair of turns. Raises InputError where the corpus is not there."""
    import yaml

    pairs: dict[Pair, None] = {}
    for language in languages:
        files = sorted((root / language).glob("*.yml"))
        if not files:
            raise InputError(f"{root / language}: holds no conversation; pip install chatterbot-corpus==1.3.3")
        for path in files:
            if path.stem not in LEFT_OUT:
                for conversation in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
                    pairs |= dict.fromkeys(_pairs([clean(turn) for turn in conversation], language, path.stem))
    return list(pairs)


def _pairs(turns: list[str], language: str, topic: str) -> list[Pair]:
    spoken = [(language, turns[0], reply) for reply in turns[1:]]
    if topic not in ALTERNATIVES:
        spoken = [(language, said, reply) for said, reply in itertools.pairwise(turns)]
    return [pair for pair in spoken if pair[1] and pair[2] and len(pair[2]) <= LONGEST]


def clean(turn: Any) -> str:
    """The turn as a person would type it: white space joined, and no text in capitals only."""
    text = re.sub(r"\s+", " ", str(turn)).strip()
    return text.capitalize() if text.isupper() and len(text) > 5 else text


def groups(pairs: list[Pair]) -> dict[str, list[list[Pair]]]:
    """Language -> pairs whose utterances are one another's near-duplicates, in one group each."""
    found = {}
    for language in dict.fromkeys(pair[0] for pair in pairs):
        own: dict[str, list[Pair]] = defaultdict(list)
        for pair in pairs:
            if pair[0] == language:
                own[re.sub(r"\W+", " ", pair[1].lower()).strip() or pair[1]].append(pair)
        found[language] = _merged(own)
    return found


def _merged(own: dict[str, list[Pair]]) -> list[list[Pair]]:
    """Joins every utterance to the first earlier one that it nearly repeats."""
    merged: dict[int, list[Pair]] = defaultdict(list)
    for first, pairs in zip(first_of_group(list(own)), own.values(), strict=True):
        merged[first].extend(pairs)
    return list(merged.values())


def as_typed(text: str, rng: random.Random) -> str:
    """The utterance as another person may type it: other capitals, other or no punctuation at its end."""
    bare = text.rstrip(" ?.!？。！")
    end = text[len(bare) :].strip()
    text = bare + rng.choice((end, end, "", "?" if "?" in end else "."))
    return rng.choice((text, text.lower(), text[:1].upper() + text[1:])) or bare


def choices(test: list[Pair], rng: random.Random) -> list[dict[str, Any]]:
    """One question for each pair: its reply among true replies to other utterances of the test and language."""
    lines = []
    for language, said, reply in test:
        own = {r.lower() for lang, s, r in test if lang == language and s == said}
        others = sorted({r for lang, _, r in test if lang == language and r.lower() not in own})
        wrong = rng.sample(others, CHOICES - 1)
        label = rng.randrange(CHOICES)
        lines.append(
            {"prompt": said, "choices": [*wrong[:label], reply, *wrong[label:]], "label": label, "task": language}
        )
    return lines


def build(pairs: list[Pair], *, seed: int = SEED) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The three parts, and what meta.json says of them."""
    rng = random.Random(seed)
    train: list[Line] = []
    valid: list[Line] = []
    test: list[Pair] = []
    counts = {}
    for language, found in groups(pairs).items():
        order = rng.sample(found, len(found))
        n_test, n_valid = round(TEST_SHARE * len(order)), max(1, round(VALID_SHARE * len(order)))
        for group in order[:n_test]:
            test += rng.sample(group, min(REPLIES, len(group)))
        for group in order[n_test : n_test + n_valid]:
            valid += [_line(pair, pair[1]) for pair in group[:REPLIES]]
        for group in order[n_test + n_valid :]:
            train += [_line(pair, said) for pair in group for said in dict.fromkeys(
                [pair[1], *(as_typed(pair[1], rng) for _ in range(COPIES - 1))])]  # fmt: skip
        counts[language] = {"pairs": sum(map(len, found)), "groups": len(found), "groups_held_out": n_test}
    rng.shuffle(train)
    meta = {
        "name": "chat",
        "command": f"python train/data/chat.py --out DIR --seed {seed}",
        "seed": seed,
        "sources": SOURCES,
        "near_duplicate": f"utterances with a cosine >= {NEAR} of character 3- to 5-gram TF-IDF are one group",
        "languages": counts,
        "tests": {"test.jsonl": "true reply among 4 by log-likelihood, by language"},
    }
    return {"train": train, "valid": valid, "test": choices(test, rng)}, meta


def _line(pair: Pair, said: str) -> Line:
    return {"prompt": said, "answer": pair[2], "task": pair[0]}


def _build(arguments: argparse.Namespace) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    return build(read_pairs(package_data("chatterbot_corpus")), seed=arguments.seed)


if __name__ == "__main__":
    run_builder(__doc__ or "", _build, SEED)
