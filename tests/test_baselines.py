"""The classical baselines, on texts whose classes can be told by their letters."""

import json
from pathlib import Path

import baselines
import pytest

from mbjax.errors import InputError

TRAIN = [("broken femur", "bone"), ("broken tibia", "bone"), ("broken wrist", "bone"), ("red eye", "eye")]


def write(path: Path, pairs: list[tuple[str, str]], task: str = "kind") -> None:
    lines = [{"prompt": f"What is {text}?", "term": text, "answer": answer, "task": task} for text, answer in pairs]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_each_baseline_gets_the_score_it_must(tmp_path: Path):
    write(tmp_path / "train.jsonl", TRAIN)
    write(tmp_path / "test.jsonl", [("broken elbow", "bone"), ("dry eye", "eye")])
    scores = {item.baseline: item for item in baselines.score(tmp_path)}
    assert scores["majority"].accuracy == 0.5
    assert scores["nearest neighbour"].accuracy == scores["nearest centroid"].accuracy == 1.0
    assert scores["linear SVM"].accuracy == 1.0
    assert scores["majority"].n == 2 and scores["majority"].half_width == pytest.approx(1.96 * 0.5 / 2**0.5)


def test_centroids_are_compared_by_angle_not_by_size():
    found = baselines.predictions(["aaaa", "aaab", "aaac", "zzzz"], ["a", "a", "a", "z"], ["zzzy"])
    assert found["nearest centroid"] == ["z"]


def test_several_near_texts_outvote_the_nearest():
    train, answers = [f"abcdefg{letter}" for letter in "hijklmn"] + ["abcdefg"], ["a"] * 7 + ["z"]
    found = baselines.predictions(train, answers, ["abcdefg"])
    assert found["nearest neighbour"] == ["z"] and found["vote of 10 nearest"] == ["a"]


@pytest.mark.parametrize("line", ["no json", '{"prompt": "a", "answer": "b"}', "[1]"])
def test_a_wrong_line_is_named(tmp_path: Path, line: str):
    write(tmp_path / "train.jsonl", TRAIN)
    (tmp_path / "test.jsonl").write_text((tmp_path / "train.jsonl").read_text() + line + "\n")
    with pytest.raises(InputError, match=r"test\.jsonl:5"):
        baselines.score(tmp_path)


def test_a_missing_file_and_a_task_without_training_are_named(tmp_path: Path):
    write(tmp_path / "test.jsonl", TRAIN, task="other")
    with pytest.raises(InputError, match=r"train\.jsonl.*build"):
        baselines.score(tmp_path)
    write(tmp_path / "train.jsonl", TRAIN)
    with pytest.raises(InputError, match="other"):
        baselines.score(tmp_path)
