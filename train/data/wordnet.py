"""Reads WordNet's data files: synonym sets with gloss and examples."""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from mbjax.errors import InputError

_PARTS_OF_SPEECH = {"noun": "1", "verb": "2", "adj": "3", "adv": "4"}  # name -> number in the sense keys


@dataclass(frozen=True)
class Synset:
    """Words of one sense, the gloss without its examples, and how often the tagged texts use its first word's sense."""

    pos: str
    file: str
    words: tuple[str, ...]
    gloss: str
    examples: tuple[str, ...]
    uses: int


def read_synsets(directory: Path) -> list[Synset]:
    """All synonym sets, in the order of the files. Raises InputError where WordNet is not there."""
    synsets = []
    try:
        uses = _uses(directory / "cntlist.rev")
        for pos, number in _PARTS_OF_SPEECH.items():
            for line in (directory / f"data.{pos}").read_text(encoding="latin-1").splitlines():
                if not line.startswith("  "):
                    synsets.append(_synset(line, pos, number, uses))
    except OSError as error:
        raise InputError(
            f"{directory}: holds no WordNet ({error.strerror}); install the package wordnet-base"
        ) from error
    return synsets


def _synset(line: str, pos: str, number: str, uses: Counter[str]) -> Synset:
    head, _, gloss = line.partition(" | ")
    fields = head.split(" ")
    count = int(fields[3], 16)
    words = tuple(re.sub(r"\(\w+\)$", "", word) for word in fields[4 : 4 + 2 * count : 2])
    sense = f"{words[0].lower()}%{number}:{fields[1]}:{int(fields[5], 16):02d}"
    definition = "; ".join(part.strip() for part in re.sub(r'"[^"]*"', "", gloss).split(";") if part.strip())
    examples = tuple(text.strip() for text in re.findall(r'"([^"]+)"', gloss))
    return Synset(pos, fields[1], words, definition, examples, uses[sense])


def _uses(path: Path) -> Counter[str]:
    """Uses of each sense by the beginning of its key: word, part of speech, file and identity."""
    found: Counter[str] = Counter()
    for line in path.read_text(encoding="latin-1").splitlines():
        key, _, count = line.split(" ")
        found[":".join(key.split(":")[:3])] += int(count)
    return found
