"""The prompts of a route key: all hand-written ones and a choice of the training prompts, the same ones every time."""

import json
from pathlib import Path

import pytest
from mix_route_prompts import WRITTEN, mixed, prompts_of

from mbjax.errors import InputError


def test_all_written_and_some_training_prompts_are_mixed():
    written, training = [f"w{i}" for i in range(5)], [f"t{i}" for i in range(100)]
    found = mixed(written, training, chosen=20)
    assert set(written) <= set(found) and len(found) == len(set(found)) == 25
    assert found == mixed(written, training, chosen=20) != mixed(written, training, seed=1, chosen=20)
    assert set(mixed(written, training[:3])) == {*written, "t0", "t1", "t2"}


def test_prompts_are_read_line_by_line_and_wrong_files_named(tmp_path: Path):
    path = tmp_path / "train.jsonl"
    lines = [{"prompt": "a\u2028b"}, {"prompt": "c"}, {"prompt": "c"}]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert prompts_of(path) == ["a\u2028b", "c"]
    for wrong in (tmp_path / "none.jsonl", tmp_path / "wrong.jsonl"):
        (tmp_path / "wrong.jsonl").write_text("{}\n")
        with pytest.raises(InputError, match=wrong.name):
            prompts_of(wrong)


def test_every_pack_has_prompts_of_its_own():
    found = {path.stem: prompts_of(path) for path in WRITTEN.glob("*.jsonl")}
    assert set(found) == {"chat", "code", "creative", "glossary", "legal", "medical", "reasoning"}
    everything = [prompt for prompts in found.values() for prompt in prompts]
    assert len(everything) == len(set(everything)) and min(map(len, found.values())) >= 25
