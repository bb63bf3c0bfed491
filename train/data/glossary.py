"""Builds the data of the pack `glossary`: what a noun means, after WordNet.

    apt-get install wordnet-base
    python train/data/glossary.py --out DIR [--source /usr]

Writes train.jsonl, valid.jsonl, test.jsonl (the definition among four of the same subject) and meta.json. The same seed
gives the same bytes. Nouns with one sense only, whose definition does not name them; the split is by sense, and a tested
definition with a near-duplicate in training is dropped.
"""

import argparse
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from build_data import run_builder
from near_duplicates import NEAR, nearest_cosine
from split_files import Line
from wordnet import Synset, read_synsets

SEED = 20
TRAIN, VALID, TEST = 20_000, 300, 1000
CHOICES = 4
LONGEST = 160  # characters of a definition

SOURCES = [{"name": "wordnet-base 3.0 (Debian)", "licence": "WordNet 3.0 licence", "holds": "glosses of nouns"}]

SEEN = (
    "What does {term} mean?",
    "What is the meaning of {term}?",
    "Define {term}.",
    "Definition of {term}?",
    "What is meant by {term}?",
    'Explain the word "{term}".',
    "{term}: definition",
    "What is {a} {term}?",
    "Give a short definition of {term}.",
    "Dictionary entry for {term}",
    'Look up "{term}" in the dictionary.',
    "In plain words, what is {a} {term}?",
)
NEW = (
    'I came across the word "{term}". What does it stand for?',
    "How would a dictionary explain {term}?",
    "Please tell me the meaning of the noun {term}.",
    '"{term}" - what does that word denote?',
)


def usable(synsets: Sequence[Synset]) -> list[tuple[str, Synset]]:
    """(term, sense) of the nouns with one sense, one for each sense, whose definition does not name them."""
    senses = Counter(word.lower() for synset in synsets for word in synset.words)
    found = []
    for synset in synsets:
        if synset.pos != "noun" or not 15 <= len(synset.gloss) <= LONGEST:
            continue
        for word in synset.words:
            term = word.replace("_", " ")
            stems = [part[:5] for part in re.findall(r"[a-z]+", term.lower()) if len(part) > 3]
            named = any(stem in synset.gloss.lower() for stem in stems)
            if senses[word.lower()] == 1 and term.islower() and stems and not named:
                found.append((term, synset))
                break
    return found


def ask(term: str, rng: random.Random, *, new: bool) -> str:
    return rng.choice(NEW if new else SEEN).format(term=term, a="an" if term[0] in "aeiou" else "a")


def questions(chosen: list[tuple[str, Synset]], rng: random.Random) -> list[dict[str, Any]]:
    """One line for each term: its definition among three of the same subject (lexicographer file); half in new words."""
    by_file: dict[str, list[str]] = defaultdict(list)
    for _, synset in chosen:
        by_file[synset.file].append(synset.gloss)
    lines = []
    for i, (term, synset) in enumerate(chosen):
        others = [gloss for gloss in by_file[synset.file] if gloss != synset.gloss]
        if len(others) < CHOICES - 1:
            continue
        wrong, label = rng.sample(others, CHOICES - 1), rng.randrange(CHOICES)
        lines.append({
            "prompt": ask(term, rng, new=i % 2 == 0), "choices": [*wrong[:label], synset.gloss, *wrong[label:]],
            "label": label, "task": "definition", "term": term, "phrasing": "new" if i % 2 == 0 else "seen",
        })  # fmt: skip
    return lines


def build(
    synsets: Sequence[Synset], *, seed: int = SEED, n_train: int = TRAIN, n_valid: int = VALID, n_test: int = TEST
) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """The three parts, and what meta.json says of them."""
    rng = random.Random(seed)
    found = usable(synsets)
    rng.shuffle(found)
    held, valid, rest = (
        found[: n_test + n_test // 5],
        found[n_test + n_test // 5 :][:n_valid],
        found[n_test * 2 + n_valid :],
    )
    train = rest[:n_train]
    near = nearest_cosine([synset.gloss for _, synset in held], [synset.gloss for _, synset in train])
    far = [item for item, cosine in zip(held, near, strict=True) if cosine < NEAR]
    meta = {
        "name": "glossary",
        "command": f"python train/data/glossary.py --out DIR --source /usr --seed {seed}",
        "seed": seed,
        "sources": SOURCES,
        "near_duplicate": f"cosine >= {NEAR} of character 3- to 5-gram TF-IDF to any definition in training",
        "held_out": {"terms": len(held), "near_duplicates_dropped": len(held) - len(far)},
        "tests": {"test.jsonl": "definition among 4 by log-likelihood"},
    }
    parts = {
        "train": [_line(term, synset, rng) for term, synset in train],
        "valid": [_line(term, synset, rng) for term, synset in valid],
        "test": questions(far[:n_test], rng),
    }
    return parts, meta


def _line(term: str, synset: Synset, rng: random.Random) -> Line:
    return {"prompt": ask(term, rng, new=False), "answer": synset.gloss, "task": "definition", "term": term}


def _build(arguments: argparse.Namespace) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    return build(read_synsets(Path(arguments.source or "/usr") / "share" / "wordnet"), seed=arguments.seed)


if __name__ == "__main__":
    run_builder(__doc__ or "", _build, SEED, {"--source": "where wordnet-base is installed; /usr if left out"})
