"""Reads the literature: Bierce's Devil's Dictionary (a dictd file) and Chinese poems (fortune files)."""

import gzip
import re
import string
from dataclasses import dataclass
from pathlib import Path

from mbjax.errors import InputError

_DIGITS = {c: i for i, c in enumerate(string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/")}
_COLOUR = re.compile(r"\x1b\[\d*m")
_POEM = re.compile(
    r"\A(?:题目:)?《(?P<title>.+?)》(?P<rest>[^\n]*)\n作者[:：](?P<author>[^\n（(]+)[^\n]*\n(?P<text>.*)\Z", re.DOTALL
)


@dataclass(frozen=True)
class Entry:
    """A word and its definition, prose joined to lines and verse as it stands, paragraphs apart."""

    word: str
    definition: str
    verses: tuple[str, ...]


@dataclass(frozen=True)
class Poem:
    title: str
    author: str
    text: str


def read_dictionary(dictd: Path) -> list[Entry]:
    """The entries of `devil.index` and `devil.dict.dz` in the directory. Raises InputError where they are not there."""
    try:
        index = (dictd / "devil.index").read_text(encoding="utf-8")
        data = gzip.decompress((dictd / "devil.dict.dz").read_bytes())  # dictzip is gzip with an index of its own
    except OSError as error:
        raise InputError(
            f"{dictd}: holds no Devil's Dictionary ({error.strerror}); install the package dict-devil"
        ) from error
    found = {}
    for line in index.splitlines():
        word, offset, length = line.split("\t")
        if not word.startswith("00database"):
            start = number(offset)
            found[start] = entry(data[start : start + number(length)].decode("utf-8", "replace"))
    return [item for _, item in sorted(found.items()) if item is not None]


def number(digits: str) -> int:
    """A number as dictd's index writes it: base 64, most significant digit first."""
    value = 0
    for digit in digits:
        value = value * 64 + _DIGITS[digit]
    return value


def entry(text: str) -> Entry | None:
    """An entry of the dictionary's layout; None for what has no word in capitals before a comma."""
    match = re.match(r"([A-Z][A-Z' -]+?),\s", text)
    if match is None:
        return None
    blocks = [block for block in re.split(r"\n\s*\n", text.strip("\n")) if block.strip()]
    verses = [_verse(block) for block in blocks if block.startswith("    ")]
    prose = [re.sub(r"\s+", " ", block).strip() for block in blocks if not block.startswith("    ")]
    definition = " ".join(prose)[match.end() :].strip() if len(prose) == 1 else "\n".join(prose)[match.end() :].strip()
    return Entry(match[1], definition, tuple(verses)) if definition else None


def _verse(block: str) -> str:
    """The lines without their indentation and without the poet's name at the right margin."""
    return "\n".join(line.strip() for line in block.splitlines() if line.strip() and not line.startswith(" " * 24))


def read_poems(path: Path) -> list[Poem]:
    """The poems of a fortune file. Raises InputError where it is not there."""
    try:
        text = _COLOUR.sub("", path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); install the package fortunes-zh") from error
    poems = []
    for piece in text.split("\n%\n"):
        match = _POEM.match(piece.strip("\n") + "\n")
        if match is not None:
            lines = [line.strip() for line in match["text"].splitlines() if line.strip()]
            poems.append(Poem(match["title"].split("〈")[0], match["author"].strip(), "\n".join(lines)))
    return poems
