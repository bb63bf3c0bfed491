"""The matrix of packs and domains, its intervals, its page, and what one more pack changes, on a tiny base."""

import argparse
import dataclasses
import json
import shutil

import pytest
from extension import page as extension_page
from extension import summary, weighed, worth
from intervals import gap, macro_f1
from matrix import matrix, read_baselines
from matrix_page import page, write_scores
from matrix_parts import Identity
from tiny_router import SHOUTS, SUMS, tiny_base, write_packs

from mbjax.engine.engine import Engine
from mbjax.io.pack_dir import read_pack, update_pack
from mbjax.io.pack_scores import Score


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("matrix")
    base = tiny_base()
    write_packs(root / "packs", base)
    for name, prompts in (("sums", SUMS), ("shouts", SHOUTS)):
        (root / "data" / name).mkdir(parents=True)
        lines = [
            {"prompt": prompt, "choices": ["one", "a b c"], "label": i % 2} for i, prompt in enumerate(prompts[:6])
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (root / "data" / name / "test.jsonl").write_text(text, encoding="utf-8")
    return root, base


def test_rows_are_kept_and_become_a_page_and_scores(place, tmp_path):
    root, base = place
    packs = shutil.copytree(root / "packs", tmp_path / "packs")
    engine = Engine(base, packs=packs, context=256)
    options = argparse.Namespace(only=None, packs=packs, limit={"sums": 4, "shouts": 4}, dtype="float32", gates="root")
    rows = matrix(engine, root / "data", tmp_path / "keep", options)
    assert [row["domain"] for row in rows] == ["shouts", "sums"] and all(row["n"] == 4 for row in rows)
    assert {"none", "shouts", "sums", "auto"} == set(rows[0]["cells"])
    assert matrix(engine, root / "data", tmp_path / "keep", options) == rows
    kept = tmp_path / "keep" / "sums.test.shouts.000.json"
    document = json.loads(kept.read_text(encoding="utf-8"))
    document["results"] = [result | {"correct": True} for result in document["results"]]
    kept.write_text(json.dumps(document), encoding="utf-8")
    again = matrix(engine, root / "data", tmp_path / "keep", options)
    assert again[1]["cells"]["shouts"]["value"] == 1 and again[0] == rows[0]  # what is there is not measured again
    options.limit = {"sums": 5}
    again = matrix(engine, root / "data", tmp_path / "keep", options)
    assert again[1]["n"] == 5 and json.loads(kept.read_text(encoding="utf-8"))["n"] == 5  # other lines are
    baselines = tmp_path / "baselines.json"
    score = {"data": "sums", "task": "test", "baseline": "guess", "metric": "acc", "value": 0.5}
    baselines.write_text(json.dumps({"scores": [score, score | {"metric": "macro_f1"}]}), encoding="utf-8")
    found = read_baselines(baselines)
    text = page(again, engine.packs.ids(), found, "the command")
    assert "0.500 (guess)" in text and "the command" in text
    write_scores(again, found, packs, base, limits=options.limit)
    stored = read_pack(packs / "sums").scores[0]
    assert stored.others["baseline: guess"] == 0.5 and "shouts" in stored.others and "--limit sums=5" in stored.command


def test_a_pack_with_another_route_key_answers_as_before(place, tmp_path):
    root, _ = place
    packs = shutil.copytree(root / "packs", tmp_path / "packs")
    before, key = Identity.of(packs / "sums"), read_pack(packs / "sums").route
    assert key is not None
    update_pack(packs / "sums", route=dataclasses.replace(key, threshold=0.75))
    after = Identity.of(packs / "sums")
    assert after.forced == before.forced and after.routed != before.routed


def test_a_gap_is_the_difference_of_the_values():
    one, other = ([{"correct": i % n == 0} for i in range(60)] for n in (2, 3))
    value, (low, high) = gap(one, other)
    assert value == pytest.approx(30 / 60 - 20 / 60) and low < value < high
    one, other = ([{"bits": bits * i, "bytes": i} for i in range(1, 9)] for bits in (3.0, 2.0))
    assert gap(one, other) == (pytest.approx(1.0), (pytest.approx(1.0), pytest.approx(1.0)))


def test_macro_f1_is_the_mean_over_the_true_classes():
    assert macro_f1(["a", "a", "b"], ["a", "b", "b"]) == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert macro_f1(["a", "b"], ["a", "something else"]) == pytest.approx(0.5)


def test_an_extension_is_told_by_set_and_prompt():
    same, other = {"chat": 1.0}, {"glossary": 1.0}
    results = [
        {"prompt": "hello", "set": "held-out chat", "before": same, "after": same},
        {"prompt": "what is a `quern`", "set": "held-out chat", "before": same, "after": other},
        {"prompt": "define ketch", "set": "held-out glossary", "before": {}, "after": other},
    ]
    rows = summary(results, "glossary")
    assert [(row["n"], row["changed"], row["selected"]) for row in rows] == [(2, 1, 1), (1, 1, 1)]
    text = extension_page(rows, results, "the command", "glossary")
    assert "| held-out, all other domains | 2 | 1 (50.00%)" in text
    assert "what is a 'quern'" in text and "define ketch" not in text


def test_changed_routes_are_weighed_by_how_many_prompts_a_domain_has():
    rows = [{"set": "held-out chat", "n": 2, "changed": 1}, {"set": "held-out code", "n": 4, "changed": 0}]
    assert weighed(rows, {"held-out chat": 10, "held-out code": 90}) == pytest.approx(0.05)


def test_the_worth_of_an_added_pack_is_what_its_scores_say():
    score = Score("definition", "acc", 150, "a" * 64, 0.38, 0.427, "the command", routed=None)
    assert worth([score])[-2] == "| definition | acc | 150 | 0.380 | 0.427 | - |"
    assert worth([]) == []
