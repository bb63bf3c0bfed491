"""The builder of the glossary data and the background prompts, on WordNet files of a few lines."""

import json
from pathlib import Path

import background
import glossary
import pytest
from wordnet import Synset, read_synsets

from mbjax.errors import InputError

NOUNS = """  1 licence text of the file
00003553 03 n 02 Whole_thing 0 unit 0 000 | an assemblage of parts; "how big is that part?"; "the team is a unit"
00004475 06 n 01 gadget 0 000 | a small device that is useful
"""
COUNTS = "gadget%1:06:00:: 1 4\ngadget%1:06:00:: 2 1\n"


def write_wordnet(folder: Path) -> Path:
    for pos in ("noun", "verb", "adj", "adv"):
        (folder / f"data.{pos}").write_text(NOUNS if pos == "noun" else "")
    (folder / "cntlist.rev").write_text(COUNTS)
    return folder


def test_synsets_are_read_with_words_gloss_examples_and_uses(tmp_path: Path):
    first, second = read_synsets(write_wordnet(tmp_path))
    examples = ("how big is that part?", "the team is a unit")
    assert first == Synset("noun", "03", ("Whole_thing", "unit"), "an assemblage of parts", examples, 0)
    assert second.uses == 5
    with pytest.raises(InputError, match="wordnet-base"):
        read_synsets(tmp_path / "nowhere")


def nouns(n: int = 200) -> list[Synset]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [f"{letters[i % 26]}{letters[i // 26]}{letters[i * 7 % 26]}rkon" for i in range(n)]
    glosses = [" ".join(f"{letters[(i * k) % 26] * 3}{i}{k}" for k in range(3, 8)) for i in range(n)]
    return [Synset("noun", "05", (w,), g, (), 9) for w, g in zip(words, glosses, strict=True)]


def test_terms_with_several_senses_or_named_by_their_gloss_are_left_out():
    kept = Synset("noun", "06", ("gadget",), "a small device that is useful", (), 0)
    double = [Synset("noun", "06", ("bank",), f"a place of the kind number {i}", (), 0) for i in range(2)]
    named = Synset("noun", "06", ("tablecloth",), "a cloth for a table, and so on", (), 0)
    assert [term for term, _ in glossary.usable([kept, *double, named])] == ["gadget"]


def test_no_definition_is_on_both_sides_and_the_label_is_right():
    parts, _ = glossary.build(nouns(), n_train=80, n_valid=10, n_test=40)
    known = {line["term"]: line["answer"] for line in parts["train"] + parts["valid"]}
    glosses = {synset.words[0]: synset.gloss for synset in nouns()}
    assert len(parts["test"]) == 40 and len(parts["train"]) == 80
    for line in parts["test"]:
        assert line["term"] not in known and line["choices"][line["label"]] == glosses[line["term"]]
        assert not set(line["choices"]) & set(known.values()) and len(set(line["choices"])) == 4
    assert parts == glossary.build(nouns(), n_train=80, n_valid=10, n_test=40)[0]


SHIPPED = Path(__file__).parents[1] / "mbjax" / "data" / "background"
PACK_PROMPTS = Path(__file__).parents[1] / "train" / "data" / "route_prompts"
MEASURED = Path(__file__).parents[1] / "infer" / "data"


def prompts(*paths: Path) -> list[str]:
    return [json.loads(line)["prompt"] for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_shipped_background_is_broad_small_and_without_repeats():
    files = sorted(SHIPPED.glob("*.jsonl"))
    found = prompts(*files)
    assert 1500 <= len(found) <= 4096 and len(set(found)) == len(found) and all(text.strip() for text in found)
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2**20
    assert sum(not text.isascii() for text in found) > 300 and max(map(len, found)) < 2000


def test_no_prompt_that_routing_is_measured_on_is_known_to_a_key():
    measured = set(prompts(MEASURED / "freeform.jsonl", MEASURED / "foreign.jsonl", MEASURED / "two_domain.jsonl"))
    assert not measured & set(prompts(*SHIPPED.glob("*.jsonl")))
    assert not measured & set(prompts(*PACK_PROMPTS.glob("*.jsonl")))


def test_composed_prompts_keep_away_from_packs_and_from_foreign_domains():
    for line in (SHIPPED / "composed.jsonl").read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        if item["kind"] == "plain sentence":
            assert background.usable(item["prompt"]), item["prompt"]


def test_composing_uses_every_sentence_once_and_the_same_seed_again_the_same_lines():
    many = [
        Synset("noun", "06", (f"thing{chr(97 + i)}",), "a device", (f"he saw a {chr(97 + i) * 4} on the table",), 5)
        for i in range(20)
    ]
    lines = background.compose(many, ["A long passage.", "一段话。"], seed=1)
    assert lines == background.compose(many, ["A long passage.", "一段话。"], seed=1)
    assert {line["kind"] for line in lines} == {"plain sentence", "passage task", "about a thing"}
    assert len({line["prompt"] for line in lines}) == len(lines)
