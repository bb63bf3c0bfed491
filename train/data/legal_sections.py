"""The headed sections of licences: passages with a title of their own, of which the articles alone are too few."""

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from legal_sources import LicenceText

SHORTEST = 150  # characters of a section that has a subject
PER_TITLE = 3  # sections of one title, at most: every licence has its "Definitions"
_NUMBER = r"(?:(?:\d+|[IVX]+)(?:\.\d+)*[.)]?|Section \d+[.:]?|ARTICLE [IVX\d]+[.:]?)"
_TITLE = r"([A-Z][A-Za-z,&'/ -]{3,60}?)"
_HEADING = re.compile(rf"^[ \t]*{_NUMBER}[ \t]+{_TITLE}[.:]?[ \t]*(?:\n|(?<=[.:])[ \t]+)(?=\S|\n)", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    family: str


def sections(texts: Iterable[LicenceText], rng: random.Random) -> list[Section]:
    """The sections of the licences, at most PER_TITLE of one title and the text without its heading."""
    by_title: dict[str, list[Section]] = defaultdict(list)
    for text in texts:
        for section in _sections_of(text):
            by_title[section.title.lower()].append(section)
    return [s for found in by_title.values() for s in rng.sample(found, min(PER_TITLE, len(found)))]


def _sections_of(text: LicenceText) -> list[Section]:
    headings = list(_HEADING.finditer(text.text))
    ends = [heading.start() for heading in headings[1:]] + [len(text.text)] * bool(headings)
    found = []
    for heading, end in zip(headings, ends, strict=True):
        title, body = heading[1].strip(), re.sub(r"\s+", " ", text.text[heading.end() : end]).strip()
        if len(body) >= SHORTEST and len(title.split()) <= 8:
            found.append(Section(title.capitalize() if title.isupper() else title, body, text.family))
    return found
