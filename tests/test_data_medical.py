"""The builder of the medical data: what is held out, that nothing leaks, and that the same seed gives the same bytes."""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "train" / "data"))  # builders are programs beside one another

import medical
from medical_phrasings import CHAPTERS, NEW, SEEN
from medical_terms import Terms, clean, note_target, read_terms
from near_duplicates import NEAR, nearest_cosine
from split_files import write_split

from mbjax.errors import InputError


@pytest.fixture(scope="module")
def terms() -> Terms:
    return read_terms(pytest.importorskip("simple_icd_10_cm"))


@pytest.fixture(scope="module")
def small(terms: Terms) -> Terms:
    """Three chapters, so that the near-duplicate search takes a second."""
    kept = tuple(term for term in terms.terms if term.chapter in ("3", "8", "10"))
    return Terms(kept, terms.titles, 0, 0)


@pytest.fixture(scope="module")
def parts(small: Terms) -> dict[str, list[dict[str, str]]]:
    return medical.build(small, n_test=60, n_valid=20, largest_class=0.5)[0]


def test_every_category_has_its_chapter_and_a_title_of_its_own(terms: Terms):
    assert len(terms.titles) == 1918 and len(set(terms.titles.values())) == 1918
    assert {term.chapter for term in terms.terms} == set(CHAPTERS)
    assert {term.chapter for term in terms.terms if term.category == "Z17"} == {"21"}  # a block and a category
    assert {term.category for term in terms.terms if term.source == "title"} == set(terms.titles)


def test_a_text_stands_for_one_category_only(terms: Terms):
    texts = [term.text.lower() for term in terms.terms]
    assert len(texts) == len(set(texts))
    by_text = {term.text: term for term in terms.terms}
    assert by_text["Sprue NOS"].category == "K90" and by_text["Sprue NOS"].source == "synonym"
    assert not any("Any condition in I00" in text for text in by_text)


@pytest.mark.parametrize(
    ("note", "target"),
    [
        ("angioma (D18.0-)", ("angioma", "D18")),
        ("inflammation of penis (N48.1, N48.2-)", ("inflammation of penis", "N48")),
        ("retained metal (fragments) (Z18.01-Z18.09)", ("retained metal (fragments)", "Z18")),
        ("sled collision (V01-V09 with 5th character 9)", None),
        ("osteoporosis (M80.-, M81.-)", None),
        ("forklift (truck)", None),
    ],
)
def test_a_note_counts_where_it_points_into_one_category(note: str, target: tuple[str, str] | None):
    assert note_target(note) == target


def test_white_space_and_closing_punctuation_go():
    assert clean("  Ulcer,\n chronic: ") == "Ulcer, chronic"


def test_held_out_are_synonyms_without_a_near_duplicate_in_training(parts: dict[str, list[dict[str, str]]]):
    train = sorted({line["term"] for line in parts["train"]})
    held = sorted({line["term"] for part in ("valid", "test") for line in parts[part]})
    assert len(held) == 80 and not set(train) & set(held)
    assert {line["source"] for line in parts["test"] + parts["valid"]} == {"synonym"}
    assert nearest_cosine(held, train).max() < NEAR


def test_every_code_s_category_is_known_to_training(small: Terms, parts: dict[str, list[dict[str, str]]]):
    assert {line["group"] for line in parts["train"]} == {term.category for term in small.terms}
    assert {line["group"] for line in parts["test"]} <= {line["group"] for line in parts["train"]}


def test_no_description_of_any_code_is_near_a_held_out_synonym(small: Terms, parts: dict[str, list[dict[str, str]]]):
    held = sorted({line["term"] for line in parts["test"]})
    codes = [term.text for term in small.terms if term.source in ("title", "description")]
    corpus = [term.text for term in small.terms]
    assert nearest_cosine(held, codes, corpus=corpus).max() < NEAR + 0.01  # the builder's weights know no notes


def test_half_of_the_test_is_asked_in_words_that_training_never_has(parts: dict[str, list[dict[str, str]]]):
    assert {line["phrasing"] for line in parts["train"]} == {"seen"}
    assert sum(line["phrasing"] == "new" for line in parts["test"]) == len(parts["test"]) / 2
    for task, phrasings in NEW.items():
        assert not set(phrasings) & set(SEEN[task]) and all("{term}" in text for text in phrasings + SEEN[task])
    starts = tuple(text.split("{term}")[0] for texts in NEW.values() for text in texts)
    assert not any(line["prompt"].startswith(starts) for line in parts["train"])


def test_both_questions_are_asked_about_every_term_and_answered_from_the_lists(small: Terms, parts):
    for part, lines in parts.items():
        terms = {task: Counter(line["term"] for line in lines if line["task"] == task) for task in SEEN}
        assert terms["chapter"].keys() == terms["category"].keys()
        times = {n for counter in terms.values() for n in counter.values()}
        assert times == ({1, 2} if part == "train" else {1})  # in other words, where those were not drawn again
        for line in lines:
            known = CHAPTERS.values() if line["task"] == "chapter" else [small.titles[line["group"]]]
            assert line["answer"] in known and line["term"][1:] in line["prompt"]
    line = next(line for line in parts["train"] if line["group"] == "J45" and line["task"] == "category")
    assert line["answer"] == "Asthma"


def test_no_chapter_carries_the_test_and_no_category_floods_the_training(terms: Terms):
    chosen = medical._balanced([term for term in terms.terms if term.source == "description"], medical.random.Random(1))
    chapters, categories = ([getattr(term, name) for term in chosen] for name in ("chapter", "category"))
    assert max(map(chapters.count, set(chapters))) == medical.CODES_OF_CHAPTER
    assert max(map(categories.count, set(categories))) == medical.CODES_OF_CATEGORY


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(small: Terms, tmp_path: Path):
    tiny = Terms(tuple(term for term in small.terms if term.chapter != "10"), small.titles, 0, 0)
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        parts, meta = medical.build(tiny, seed=seed, n_test=20, n_valid=10, largest_class=1.0)
        digests.append(write_split(tmp_path / name, parts, meta)["split_digest"])
    assert digests[0] == digests[1] != digests[2]
    assert json.loads((tmp_path / "a" / "meta.json").read_text())["split_digest"] == digests[0]
    first = (tmp_path / "a" / "train.jsonl").read_bytes()
    assert first == (tmp_path / "b" / "train.jsonl").read_bytes()
    assert {"prompt", "answer", "task", "group"} <= json.loads(first.splitlines()[0]).keys()


def test_too_small_a_classification_is_refused(small: Terms):
    tiny = Terms(tuple(term for term in small.terms if term.chapter == "8"), small.titles, 0, 0)
    with pytest.raises(InputError, match="hold out where 100"):
        medical.build(tiny, n_test=60, n_valid=30, largest_class=1.0)


def test_cosine_knows_equal_near_and_foreign_texts():
    pool = ["fracture of femur", "fracture of the femur", "tuberculosis"]
    to_all = nearest_cosine(["fracture of femur", "zzz"], pool)
    np.testing.assert_allclose(to_all, [1.0, 0.0], atol=1e-6)
    to_others = nearest_cosine(pool, pool, skip_self=True)
    assert 0.5 < to_others[0] < 1.0 and to_others[2] < 0.1
