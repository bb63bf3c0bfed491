"""The classical baselines, on texts whose classes can be told by their letters."""

import json
from pathlib import Path

import baselines
import pytest
from ngram_baseline import NgramModel, training_text

from mbjax.errors import InputError

TRAIN = [("broken femur", "bone"), ("broken tibia", "bone"), ("broken wrist", "bone"), ("red eye", "eye")]


def write(path: Path, pairs: list[tuple[str, str]], task: str = "kind") -> None:
    lines = [{"prompt": f"What is {text}?", "term": text, "answer": answer, "task": task} for text, answer in pairs]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_each_baseline_gets_the_score_it_must(tmp_path: Path):
    write(tmp_path / "train.jsonl", TRAIN)
    write(tmp_path / "test.jsonl", [("broken elbow", "bone"), ("dry eye", "eye")])
    scores = {item.baseline: item for item in baselines.score(tmp_path) if item.metric == "exact_match"}
    assert scores["majority"].value == 0.5
    assert scores["nearest neighbour"].value == scores["nearest centroid"].value == 1.0
    assert scores["linear SVM"].value == 1.0
    assert scores["majority"].n == 2 and scores["majority"].half_width == pytest.approx(1.96 * 0.5 / 2**0.5)


def test_centroids_are_compared_by_angle_not_by_size():
    found = baselines.predictions(["aaaa", "aaab", "aaac", "zzzz"], ["a", "a", "a", "z"], ["zzzy"])
    assert found["nearest centroid"] == ["z"]


def test_several_near_texts_outvote_the_nearest():
    train, answers = [f"abcdefg{letter}" for letter in "hijklmn"] + ["abcdefg"], ["a"] * 7 + ["z"]
    found = baselines.predictions(train, answers, ["abcdefg"])
    assert found["nearest neighbour"] == ["z"] and found["vote of 10 nearest"] == ["a"]


def test_macro_f1_counts_every_class_alike(tmp_path: Path):
    write(tmp_path / "train.jsonl", TRAIN)
    write(tmp_path / "test.jsonl", [("broken elbow", "bone"), ("broken hand", "bone"), ("dry eye", "eye")])
    f1 = {item.baseline: item.value for item in baselines.score(tmp_path) if item.metric == "macro_f1"}
    assert f1["linear SVM"] == 1.0 and f1["majority"] == pytest.approx(0.8 / 2)  # 0.8 for bone, 0 for eye


def test_an_answer_counts_by_the_line_s_own_match(tmp_path: Path):
    write(tmp_path / "train.jsonl", [("2 + 3", "2+3=5")])
    line = {"prompt": "What is 2 + 3?", "answer": "5", "task": "kind", "match": "last_number"}
    (tmp_path / "test.jsonl").write_text(json.dumps(line) + "\n")
    scores = {item.baseline: (item.metric, item.value) for item in baselines.score(tmp_path)}
    assert scores["nearest neighbour"] == ("last_number", 1.0)


def test_a_training_line_with_choices_is_answered_by_the_right_one():
    line = {"prompt": "a", "task": "b", "choices": ["x", "y"], "label": 1}
    assert baselines.answered(line)["answer"] == "y" and "answer" not in line
    assert baselines.answered({"answer": "z"}) == {"answer": "z"}
    assert baselines.answered(line | {"given": "x"})["answer"] == "x"


def test_the_choice_that_fits_the_answers_to_like_prompts_is_retrieved(tmp_path: Path):
    write(tmp_path / "train.jsonl", [("a greeting", "hello there friend"), ("a farewell", "goodbye and good night")])
    choices = ["completely different", "good night, goodbye"]
    line = {"prompt": "What is my farewell?", "choices": choices, "label": 1, "task": "talk"}
    (tmp_path / "test.jsonl").write_text(json.dumps(line) + "\n")
    scores = {item.baseline: item.value for item in baselines.score(tmp_path)}
    assert scores["retrieval"] == 1.0 and set(scores) == {"retrieval", "prompt likeness", "byte n-grams"}


def test_n_grams_know_what_they_have_read_and_sum_to_one():
    model = NgramModel(b"abcabcabcabc " * 20)
    assert model.bits(b"ab", b"c") < 0.2 and model.bits(b"ab", b"z") > 4
    assert model.bits(b"", b"abc") < model.bits(b"", b"cba")
    for before in (b"", b"abcabcab", b"zzz"):
        total = sum(2 ** -model.bits(before, bytes([byte])) for byte in range(256))
        assert total == pytest.approx(1.0, abs=1e-6)


def test_bits_of_a_text_are_those_of_its_bytes_in_turn():
    model = NgramModel(b"the cat sat on the mat; the dog sat on the log")
    parts = model.bits(b"", b"the ") + model.bits(b"the ", b"cat")
    assert model.bits(b"", b"the cat") == pytest.approx(parts)


def test_completions_are_measured_in_bits_per_byte(tmp_path: Path):
    write(tmp_path / "train.jsonl", TRAIN)
    lines = [{"prompt": "Say it", "completion": text, "task": "kind"} for text in ("bone", "eye")]
    (tmp_path / "test_x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (score,) = baselines.score(tmp_path)
    model = NgramModel(training_text(baselines.read_lines(tmp_path / "train.jsonl")))
    bits = sum(model.bits(b"Say it\n", text) for text in (b"bone", b"eye"))
    assert (score.metric, score.n) == ("bits_per_byte", 2) and score.value == pytest.approx(bits / 7)


@pytest.mark.parametrize("line", ["no json", '{"prompt": "a", "answer": "b"}', "[1]", '{"prompt": "a", "task": "b"}'])
def test_a_wrong_line_is_named(tmp_path: Path, line: str):
    write(tmp_path / "train.jsonl", TRAIN)
    (tmp_path / "test.jsonl").write_text((tmp_path / "train.jsonl").read_text() + line + "\n")
    with pytest.raises(InputError, match=r"test\.jsonl:5"):
        baselines.score(tmp_path)


def test_missing_files_are_named(tmp_path: Path):
    write(tmp_path / "test.jsonl", TRAIN)
    with pytest.raises(InputError, match=r"train\.jsonl.*build"):
        baselines.score(tmp_path)
    (tmp_path / "test.jsonl").rename(tmp_path / "train.jsonl")
    with pytest.raises(InputError, match=r"no test\*\.jsonl"):
        baselines.score(tmp_path)
