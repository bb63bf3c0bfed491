"""ICD-10-CM as labelled terms: category titles, code descriptions, synonyms and notes, each with its category.

Source: the package `simple-icd-10-cm`, which carries the tabular list (April 2026 release).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType

# A note ends in the codes it points to: "angioma (D18.0-)", "inflammation of penis (N48.1, N48.2-)".
_POINTER = re.compile(r"^(?P<text>.+?)\s*\((?P<codes>[A-Z][0-9][0-9A-Z.,;\- A-Z]*)\)\s*$")
_CODE = re.compile(r"\b([A-Z][0-9][0-9A-Z])(?:\.[0-9A-Z]+)?-?")
_VAGUE = re.compile(r"\blisted\b|\bconditions? (in|classifi)|^codes? |^this category|^any ", re.IGNORECASE)
_LONGEST = 160  # characters; beyond that a synonym is a paragraph of rules, not a term


@dataclass(frozen=True)
class Term:
    """One text with its place: `source` is title, description, synonym or note; `chapter` is "1" to "22"."""

    text: str
    category: str
    chapter: str
    source: str
    code: str


@dataclass(frozen=True)
class Terms:
    """All usable terms, the titles of the categories, and how many texts were dropped.

    `ambiguous` counts texts that stand for several categories, `rules` those that are no terms: too long, or spoken
    in codes ("Any condition in I00 with pericarditis").
    """

    terms: tuple[Term, ...]
    titles: dict[str, str]
    ambiguous: int
    rules: int


def read_terms(icd: ModuleType) -> Terms:
    """Every term of the classification `icd` (the module `simple_icd_10_cm`), in the order of the tabular list.

    A text is kept once, from its first source in the order title, synonym, description, note; a text that stands for
    several categories is dropped wherever it stands, category titles apart.
    """
    chapters = _chapter_of_category(icd)
    titles = {category: clean(icd.get_description(category)) for category in chapters}
    found = list(_walk(icd, chapters))
    usable = [term for term in found if term.source in ("title", "description") or not _is_rule(term.text, chapters)]
    kept, ambiguous = _once(usable)
    return Terms(tuple(kept), titles, ambiguous, len(found) - len(usable))


def clean(text: str) -> str:
    """The text with runs of white space made one space and closing punctuation taken off."""
    return " ".join(text.split()).rstrip(" .,;:")


def note_target(note: str) -> tuple[str, str] | None:
    """Text and category of an "excludes" note that points into exactly one category; else None."""
    match = _POINTER.match(clean(note))
    if match is None:
        return None
    categories = set(_CODE.findall(match["codes"]))
    if len(categories) != 1:
        return None
    return clean(match["text"]), categories.pop()


def _chapter_of_category(icd: ModuleType) -> dict[str, str]:
    """Category code -> chapter, from one pass over the list.

    Not by `get_parent`: it never ends on codes that are both block and category (Z17).
    """
    chapters: dict[str, str] = {}
    chapter = ""
    for code in icd.get_all_codes():
        if icd.is_chapter(code):
            chapter = code
        elif icd.is_category(code):
            chapters.setdefault(code, chapter)
    return chapters


def _walk(icd: ModuleType, chapters: dict[str, str]) -> Iterator[Term]:
    for code in dict.fromkeys(icd.get_all_codes()):  # a block of one category is listed twice
        if code[:3] not in chapters or not icd.is_category_or_subcategory(code) or icd.is_extended_subcategory(code):
            continue
        source = "title" if code in chapters else "description"
        yield _term(icd.get_description(code), code[:3], chapters, source, code)
        for text in icd.get_inclusion_term(code):
            yield _term(text, code[:3], chapters, "synonym", code)
        for text in icd.get_includes(code):
            yield _term(text, code[:3], chapters, "note", code)
        for note in icd.get_excludes1(code) + icd.get_excludes2(code):
            target = note_target(note)
            if target is not None and target[1] in chapters:
                yield _term(target[0], target[1], chapters, "note", target[1])


def _is_rule(text: str, chapters: dict[str, str]) -> bool:
    """Whether a text is a coding rule: "B12" in a text is a vitamin, for no category has that code."""
    return len(text) > _LONGEST or bool(_VAGUE.search(text)) or any(code in chapters for code in _CODE.findall(text))


def _term(text: str, category: str, chapters: dict[str, str], source: str, code: str) -> Term:
    return Term(clean(text), category, chapters[category], source, code)


def _once(terms: Iterable[Term]) -> tuple[list[Term], int]:
    """Each text once, and the number of texts dropped because they name several categories."""
    rank = {"title": 0, "synonym": 1, "description": 2, "note": 3}
    by_text: dict[str, list[Term]] = defaultdict(list)
    for term in terms:
        by_text[term.text.lower()].append(term)
    kept, ambiguous = [], 0
    for same in by_text.values():
        best = min(same, key=lambda term: rank[term.source])
        if best.source != "title" and len({term.category for term in same}) > 1:
            ambiguous += 1
        else:
            kept.append(best)
    return kept, ambiguous
