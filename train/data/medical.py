"""Builds the data of the pack `medical`: ICD-10-CM terms -> chapter, and -> title of the three-character category.

    python train/data/medical.py --out DIR

Writes train.jsonl, valid.jsonl, test.jsonl and meta.json. A line holds `prompt`, `answer`, `task` (chapter or
category), `group` (the category's code), `term` (the bare text, for baselines that must not see the phrasing),
`source` and `phrasing` (seen or new). Needs the extra `data`. The same seed gives the same bytes.

Held out are synonyms (the tabular list's inclusion terms), never codes: every category is known to training by its
title and descriptions. A synonym with a near-duplicate anywhere (another synonym, a title, the description of any
code, used in training or not) is never held out; notes too near to a held-out synonym leave the training set; and
what is still near a training text when the training texts alone weigh the n-grams is dropped.
"""

import argparse
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from medical_phrasings import CHAPTERS, NEW, SEEN
from medical_terms import Term, Terms, read_terms
from near_duplicates import NEAR, nearest_cosine
from split_files import Line, write_split

from mbjax.errors import InputError, MbjaxError

SEED = 20
TEST, VALID = 1000, 300  # synonyms; each is asked for chapter and for category
MOST_OF_CHAPTER = 0.25  # of a chapter's synonyms are held out: small chapters stay learnable
LARGEST_CLASS = 0.09  # of the test: no chapter may carry the score
CODES_OF_CATEGORY, CODES_OF_CHAPTER = 6, 700  # descriptions in training: chapter 19 alone has 13,000

SOURCES = [
    {
        "name": "simple-icd-10-cm 1.5.0 (PyPI)",
        "licence": "MIT",
        "holds": "ICD-10-CM tabular list, April 2026: the US modification (NCHS, CMS) of the WHO's ICD-10",
        "data_licence": "ICD-10-CM is published by the US government; ICD-10 itself is copyright of the WHO",
    }
]


def held_out(
    terms: Terms, rng: random.Random, *, n: int, largest_class: float = LARGEST_CLASS
) -> tuple[list[Term], dict[str, int]]:
    """`n` synonyms without near-duplicates, balanced over the chapters; and the counts of the choice.

    Raises InputError if the classification has not so many.
    """
    synonyms = [term for term in terms.terms if term.source == "synonym"]
    others = [term.text for term in terms.terms if term.source in ("title", "description")]
    texts = [term.text for term in synonyms]
    cosine = nearest_cosine(texts, texts + others, skip_self=True)
    clean = [term for term, near in zip(synonyms, cosine, strict=True) if near < NEAR]
    sizes = Counter(term.chapter for term in synonyms)
    taken: Counter[str] = Counter()
    chosen = []
    for term in rng.sample(clean, len(clean)):
        most = min(MOST_OF_CHAPTER * sizes[term.chapter], largest_class * n)
        if len(chosen) < n and taken[term.chapter] + 1 <= most:
            taken[term.chapter] += 1
            chosen.append(term)
    if len(chosen) < n:
        raise InputError(
            f"the classification has {len(chosen)} synonyms to hold out where {n} are wanted: ask for fewer"
        )
    counts = {"synonyms": len(synonyms), "near_duplicates_dropped": len(synonyms) - len(clean), "eligible": len(clean)}
    return chosen, counts


def training_terms(terms: Terms, held: list[Term], rng: random.Random) -> tuple[list[Term], int]:
    """Titles, synonyms and notes that are not held out, and a balanced choice of descriptions.

    Second: how many notes were left out because they are near a held-out synonym.
    """
    out = {term.text for term in held}
    sets: dict[str, list[Term]] = defaultdict(list)
    for term in terms.terms:
        if term.text not in out:
            sets[term.source].append(term)
    notes = sets["note"]
    hidden = [term.text for term in held]
    corpus = [term.text for term in terms.terms]
    near = nearest_cosine([note.text for note in notes], hidden, corpus=corpus)
    far = [note for note, cosine in zip(notes, near, strict=True) if cosine < NEAR]
    chosen = sets["title"] + sets["synonym"] + far + _balanced(sets["description"], rng)
    return chosen, len(notes) - len(far)


def _balanced(descriptions: list[Term], rng: random.Random) -> list[Term]:
    """A few descriptions of each category; short codes first, for long ones only vary side, site or trimester."""
    order = sorted(descriptions, key=lambda term: (len(term.code), rng.random()))
    of_category: Counter[str] = Counter()
    of_chapter: Counter[str] = Counter()
    chosen = []
    for term in order:
        if of_category[term.category] < CODES_OF_CATEGORY and of_chapter[term.chapter] < CODES_OF_CHAPTER:
            of_category[term.category] += 1
            of_chapter[term.chapter] += 1
            chosen.append(term)
    return chosen


def as_written(text: str, rng: random.Random) -> str:
    """The term as somebody may type it inside a sentence: half of the time without the capital at its start."""
    first = text.split(" ", 1)[0]
    plain = first[:1].isupper() and first[1:].islower() and first.isalpha()
    return text[0].lower() + text[1:] if plain and rng.random() < 0.5 else text


def ask(term: Term, task: str, titles: dict[str, str], rng: random.Random, *, new: bool) -> Line:
    """One line of a file: the term in a phrasing of the task, with the answer."""
    phrasing = rng.choice((NEW if new else SEEN)[task])
    return {
        "prompt": phrasing.format(term=as_written(term.text, rng)),
        "answer": CHAPTERS[term.chapter] if task == "chapter" else titles[term.category],
        "task": task,
        "group": term.category,
        "term": term.text,
        "source": term.source,
        "phrasing": "new" if new else "seen",
    }


def lines_of(terms: list[Term], titles: dict[str, str], rng: random.Random, *, new_share: float) -> list[Line]:
    """Both questions about every term, shuffled; `new_share` of them in phrasings that training never has."""
    lines = []
    for index, term in enumerate(terms):
        new = index < round(new_share * len(terms))
        lines += [ask(term, task, titles, rng, new=new) for task in SEEN]
    rng.shuffle(lines)
    return lines


def asked_again(lines: list[Line], terms: list[Term], titles: dict[str, str], rng: random.Random) -> list[Line]:
    """The lines, and both questions about every term once more in other words, so that it is not the wording that is
    learnt. The generator is one of its own: what is added in training moves no test line."""
    asked = {line["prompt"] for line in lines}
    more = [line for line in lines_of(terms, titles, rng, new_share=0.0) if line["prompt"] not in asked]
    both = lines + more
    rng.shuffle(both)
    return both


def build(
    terms: Terms,
    *,
    seed: int = SEED,
    n_test: int = TEST,
    n_valid: int = VALID,
    largest_class: float = LARGEST_CLASS,
) -> tuple[dict[str, list[Line]], dict[str, Any]]:
    """The three parts as lists of lines, and what meta.json says of them. Raises InputError as `held_out` does."""
    rng = random.Random(seed)
    n = n_test + n_valid
    held, counts = held_out(terms, rng, n=n + max(n // 20, 10), largest_class=largest_class)
    train, notes_dropped = training_terms(terms, held, rng)
    # The last word has the measure as anybody would take it from the files: weighted by the training texts alone.
    near = nearest_cosine([term.text for term in held], [term.text for term in train])
    far = [term for term, cosine in zip(held, near, strict=True) if cosine < NEAR]
    if len(far) < n:
        raise InputError(f"only {len(far)} of {n} held-out synonyms are far enough from training: ask for fewer")
    test, valid = far[:n_test], far[n_test:n]
    counts |= {"near_training_text_dropped": len(held) - len(far), "spare": len(far) - n}
    parts = {
        "train": lines_of(train, terms.titles, rng, new_share=0.0),
        "valid": lines_of(valid, terms.titles, rng, new_share=0.5),
        "test": lines_of(test, terms.titles, rng, new_share=0.5),
    }
    parts["train"] = asked_again(parts["train"], train, terms.titles, random.Random(seed + 1))
    meta = {
        "name": "medical",
        "command": f"python train/data/medical.py --out DIR --seed {seed}",
        "seed": seed,
        "sources": SOURCES,
        "tasks": {"chapter": f"{len(CHAPTERS)} short chapter titles", "category": f"{len(terms.titles)} titles"},
        "chapters": CHAPTERS,
        "near_duplicate": f"cosine >= {NEAR} of character 3- to 5-gram TF-IDF to any other synonym, title, description",
        "held_out": counts | {"notes_near_held_out_dropped": notes_dropped},
        "dropped": {"texts_of_several_categories": terms.ambiguous, "rules_not_terms": terms.rules},
        "terms": {part: _count(chosen) for part, chosen in (("train", train), ("valid", valid), ("test", test))},
    }
    return parts, meta


def _count(terms: list[Term]) -> dict[str, Any]:
    chapters = Counter(term.chapter for term in terms)
    return {
        "n": len(terms),
        "sources": dict(Counter(term.source for term in terms)),
        "chapters": {chapter: chapters[chapter] for chapter in CHAPTERS},
        "categories": len({term.category for term in terms}),
        "largest_chapter_share": round(max(chapters.values()) / len(terms), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory for the four files")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    import simple_icd_10_cm  # reads 10 MB of XML: two seconds that --help need not wait for

    try:
        parts, meta = build(read_terms(simple_icd_10_cm), seed=options.seed)
        document = write_split(options.out, parts, meta)
    except MbjaxError as error:
        parser.exit(error.exit_status, f"{error}\n")
    print({name: file["lines"] for name, file in document["files"].items()}, document["split_digest"])


if __name__ == "__main__":
    main()
