"""Builds the data of the pack `creative`: Bierce's Devil's Dictionary, its verse, and poems of the Tang and Song.

    apt-get install dict-devil fortunes-zh
    python train/data/creative.py --out DIR [--source /usr]

Writes train.jsonl, valid.jsonl, test.jsonl (bits per byte of unseen entries and poems) and meta.json. `--source` holds
`share/dictd` and `share/games/fortunes`; only `devil`, `tang300` and `song100` are read, which are in the public domain
(other fortunes are not). The same seed gives the same bytes.

The split is by word and by poem; the parts of a cycle ("其一", "其二") stay together.
"""

import argparse
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from build_data import run_builder
from creative_phrasings import NEW, SEEN
from creative_sources import Entry, Poem, read_dictionary, read_poems
from near_duplicates import NEAR, nearest_cosine
from split_files import Line

SEED = 20
TEST_SHARE, VALID_SHARE = 0.2, 0.04
COPIES = 4  # of every text in training, each asked for in another way
LONGEST, LONGEST_POEM = 700, 100  # characters of a piece; Chinese takes two or three tokens a character

SOURCES = [
    {"name": "dict-devil 1.0 (Debian)", "licence": "public domain", "holds": "The Devil's Dictionary, Ambrose Bierce"},
    {"name": "fortunes-zh 2.98 (Debian): tang300, song100", "licence": "public domain",
     "holds": "314 poems of the Tang and 95 of the Song dynasty"},
]  # fmt: skip

Item = TypeVar("Item", Entry, Poem)


def pieces(text: str, longest: int) -> list[str]:
    """The text in pieces of at most about `longest` characters that end with a line or a sentence."""
    parts = re.split(r"(?<=\n)|(?<=[.!?。！？] )|(?<=[。！？])", text)
    found = [""]
    for part in parts:
        if found[-1] and len(found[-1]) + len(part) > longest:
            found.append("")
        found[-1] += part
    return [piece.strip() for piece in found if piece.strip()]


def entry_lines(entry: Entry, rng: random.Random, *, new: bool = False) -> list[Line]:
    """The definition, its verses, and what follows where a text is longer than a piece."""
    word = rng.choice((entry.word.lower(), entry.word.lower(), entry.word, entry.word.capitalize()))
    lines = []
    for task, text in [("definition", entry.definition), *(("verse", verse) for verse in entry.verses)]:
        first, *rest = pieces(text, LONGEST) or [""]
        if first:
            lines.append(_line(task, first, entry.word, rng, new=new, word=word))
        for before, after in zip([first, *rest], rest, strict=False):
            lines.append(_line("more", after, entry.word, rng, word=word, before=before[-300:]))
    return lines


def poem_lines(poem: Poem, kind: str, rng: random.Random, *, new: bool = False) -> list[Line]:
    """The poem by its title, and what follows where it is longer than a piece."""
    first, *rest = pieces(poem.text, LONGEST_POEM)
    lines = [_line(kind, first, cycle(poem), rng, new=new, title=poem.title, author=poem.author)]
    for before, after in zip([first, *rest], rest, strict=False):
        lines.append(_line("next", after, cycle(poem), rng, before=before[-60:]))
    return lines


def _line(task: str, text: str, group: str, rng: random.Random, *, new: bool = False, **slots: str) -> Line:
    prompt = rng.choice((NEW if new else SEEN)[task]).format(**slots)
    return {"prompt": prompt, "answer": text, "task": task, "group": group}


def cycle(poem: Poem) -> str:
    """Author and title without the number in a cycle."""
    return f"{poem.author} {re.split('[・·]', poem.title)[0]}"


def split(items: list[Item], group: Callable[[Item], str], rng: random.Random) -> tuple[list[Item], ...]:
    """(train, valid, test) by group."""
    names = sorted({group(item) for item in items})
    rng.shuffle(names)
    n_test, n_valid = round(TEST_SHARE * len(names)), max(1, round(VALID_SHARE * len(names)))
    test, valid = set(names[:n_test]), set(names[n_test : n_test + n_valid])
    parts: tuple[list[Item], ...] = ([], [], [])
    for item in items:
        parts[2 if group(item) in test else 1 if group(item) in valid else 0].append(item)
    return parts


def build(
    entries: list[Entry], poems: dict[str, list[Poem]], *, seed: int = SEED
) -> tuple[dict[str, list[Line]], dict[str, Any]]:
    """The three parts, and what meta.json says of them; `poems` has tang and song."""
    rng = random.Random(seed)
    parts: tuple[list[Line], ...] = ([], [], [])
    for part, chosen in enumerate(split(entries, lambda entry: entry.word, rng)):
        for i, entry in enumerate(chosen):
            for _ in range(COPIES if part == 0 else 1):
                parts[part].extend(entry_lines(entry, rng, new=part == 2 and i % 2 == 0))
    for kind, own in poems.items():
        for part, chosen in enumerate(split(own, cycle, rng)):
            for i, poem in enumerate(chosen):
                for _ in range(COPIES if part == 0 else 1):
                    parts[part].extend(poem_lines(poem, kind, rng, new=part == 2 and i % 2 == 0))
    train, valid, asked = parts
    near = nearest_cosine([line["answer"] for line in asked], sorted({line["answer"] for line in train}))
    far = [line for line, cosine in zip(asked, near, strict=True) if cosine < NEAR]
    test = [{"prompt": line["prompt"], "completion": line["answer"], "task": _kind(line["task"])} for line in far]
    rng.shuffle(train)
    meta = {
        "name": "creative",
        "command": f"python train/data/creative.py --out DIR --source /usr --seed {seed}",
        "seed": seed,
        "sources": SOURCES,
        "row_length": 512,
        "near_duplicate": f"cosine >= {NEAR} of character 3- to 5-gram TF-IDF to any piece in training",
        "held_out": {"pieces": len(asked), "near_duplicates_dropped": len(asked) - len(far)},
        "tests": {"test.jsonl": "bits per byte of the piece after its prompt, by kind"},
    }
    return {"train": train, "valid": valid, "test": test}, meta


def _kind(task: str) -> str:
    return {"definition": "devil", "more": "devil", "verse": "verse"}.get(task, "chinese")


def _build(arguments: argparse.Namespace) -> tuple[dict[str, list[Line]], dict[str, Any]]:
    source = Path(arguments.source or "/usr")
    fortunes = source / "share" / "games" / "fortunes"
    poems = {"tang": read_poems(fortunes / "tang300"), "song": read_poems(fortunes / "song100")}
    return build(read_dictionary(source / "share" / "dictd"), poems, seed=arguments.seed)


if __name__ == "__main__":
    run_builder(__doc__ or "", _build, SEED, {"--source": "where the two packages are installed; /usr if left out"})
