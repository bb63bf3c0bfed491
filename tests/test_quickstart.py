"""The quick start's stages: done once, done again where something before them changed, and stopped at a failure."""

import json
import sys
from pathlib import Path

import pytest
import quickstart
from quickstart import Stage


def counting(name: str, place: Path, *more: str) -> Stage:
    """A stage that adds a line to a file and prints a document."""
    code = "import sys, pathlib; open(sys.argv[1], 'a').write('x'); print('{}')"
    return Stage(name, [sys.executable, "-c", code, str(place / name), *more], place / f"{name}.json")


def runs(place: Path, name: str) -> int:
    return len((place / name).read_text())


def test_what_is_done_is_passed_over_and_what_follows_a_change_is_not(tmp_path):
    config = tmp_path / "two.toml"
    config.write_text("a = 1")
    three = lambda word: [
        counting("one", tmp_path, word),
        counting("two", tmp_path, str(config)),
        counting("three", tmp_path),
    ]
    for _ in range(2):
        quickstart.run(three("first"), tmp_path)
    assert [runs(tmp_path, name) for name in ("one", "two", "three")] == [1, 1, 1]
    config.write_text("a = 2")
    quickstart.run(three("first"), tmp_path)
    assert [runs(tmp_path, name) for name in ("one", "two", "three")] == [1, 2, 2]
    (tmp_path / "done" / "three.json").unlink()
    seconds = quickstart.run(three("first"), tmp_path)
    assert [runs(tmp_path, name) for name in ("one", "two", "three")] == [1, 2, 3]
    assert set(seconds) == {"one", "two", "three"} and json.loads((tmp_path / "two.json").read_text()) == {}


def test_a_stage_that_fails_ends_it_and_is_tried_again(tmp_path):
    bad = Stage("bad", [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(SystemExit, match="the stage 'bad' failed"):
        quickstart.run([counting("one", tmp_path), bad], tmp_path)
    with pytest.raises(SystemExit):
        quickstart.run([counting("one", tmp_path), bad], tmp_path)
    assert runs(tmp_path, "one") == 1 and not (tmp_path / "done" / "bad.json").exists()


def test_the_configurations_that_it_writes_are_read(tmp_path):
    from mbjax.training.base_config import read_base_config
    from mbjax.training.config import read_config

    quickstart.write_configs(tmp_path, 30)
    assert read_base_config(tmp_path / "base.toml").loop.steps == 30
    for name in quickstart.PACKS:
        assert read_config(tmp_path / f"{name}.toml").id == name
    named = [
        word for stage in quickstart.stages(tmp_path, Path("/")) for word in stage.command if word.endswith(".toml")
    ]
    assert {Path(word).stem for word in named} == {"base", *quickstart.PACKS}


def test_packs_are_compared_in_the_direction_of_their_metric():
    bits, right = (
        {"metric": "bits_per_byte", "base": 3.0, "pack": 2.0},
        {"metric": "exact_match", "base": 0.2, "pack": 0.3},
    )
    assert quickstart.better([bits]) and quickstart.better([bits, right])
    assert quickstart.better([right, right | {"pack": 0.2}]) and not quickstart.better([right | {"pack": 0.2}])
    assert not quickstart.better([bits, right | {"pack": 0.1}]) and not quickstart.better([bits | {"pack": 4.0}])
