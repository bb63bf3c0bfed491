"""`mbjax pack list|verify|export`: one JSON document on stdout, problems named, adapters in and out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_packs import CONFIG, FakeBase, random_pack, route_key, same_trees, write_toy

from mbjax.cli.pack import app
from mbjax.errors import InputError
from mbjax.io import load
from mbjax.io.pack_dir import read_pack, update_pack
from mbjax.io.pack_tensors import named
from mbjax.io.peft import export_peft, import_peft


def run(*arguments: str | Path) -> None:
    app(args=[str(argument) for argument in arguments], standalone_mode=False)


def document(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_toy(tmp_path / "toy")
    run("list", "--packs", tmp_path, "--json")
    (entry,) = document(capsys)["packs"]
    assert entry["id"] == "toy" and entry["version"] == "1.0.0" and entry["parts"] == ["expert", "lora"]
    assert entry["bytes"] == sum(file.bytes for file in manifest.files.values()) and entry["problems"] == []
    assert entry["base_digest"] == "a" * 64
    run("list", "--packs", tmp_path)
    assert "toy" in capsys.readouterr().out


def test_list_without_packs(tmp_path: Path, home: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    run("list", "--json")
    assert document(capsys) == {"packs": []}
    with pytest.raises(InputError, match="cannot be listed"):
        run("list", "--packs", "none")


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_toy(tmp_path / "toy")
    run("verify", tmp_path / "toy", "--json")
    assert document(capsys)["packs"][0]["problems"] == []
    for name in ("README.md", "scores.json"):
        (tmp_path / "toy" / name).write_text("[red]other")
    with pytest.raises(InputError, match=r"scores\.json: has 10 bytes"):
        run("verify", tmp_path / "toy", "--json")
    assert len(document(capsys)["packs"][0]["problems"]) == 2
    with pytest.raises(InputError, match="no such directory"):
        run("verify", tmp_path / "[none]")
    assert "[none]" in "".join(capsys.readouterr().out.split())


def test_export_both_ways(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    pack = random_pack(expert=False)
    monkeypatch.setattr(load, "load_base", lambda name: FakeBase(name=name))
    write_toy(tmp_path / "toy", pack)
    run("export", tmp_path / "toy", tmp_path / "adapter", "--json")
    done = document(capsys)
    assert done["form"] == "peft" and "route key" in done["notes"][0]
    assert same_trees(import_peft(tmp_path / "adapter", CONFIG).pack, pack)
    run("export", tmp_path / "adapter", tmp_path / "again", "--base", "tiny", "--licence", "MIT", "--json")
    assert document(capsys) == {"path": str(tmp_path / "again"), "form": "pack", "notes": []}
    again = read_pack(tmp_path / "again")
    assert same_trees(again.params, pack) and again.manifest.id == "again" and again.manifest.licence == "MIT"


def test_export_in_another_dtype(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    pack = random_pack()
    write_toy(tmp_path / "toy", pack)
    update_pack(tmp_path / "toy", card="# Toy\n\n## Scores\n\nold\n")
    run("export", tmp_path / "toy", tmp_path / "small", "--dtype", "int8", "--version", "1.0.0-int8", "--json")
    done, small = document(capsys), read_pack(tmp_path / "small")
    assert done["form"] == "pack" and "scores stay behind" in done["notes"][0] and not small.scores
    assert small.manifest.quantisation == "int8" and small.manifest.version == "1.0.0-int8"
    assert small.card == "# Toy\n\nMatrices in int8.\n" and small.manifest.name == "Toy pack"
    assert small.route is not None and same_trees(small.route.tensors, route_key().tensors)
    for name, leaf in named(small.params).items():
        np.testing.assert_allclose(leaf, named(pack)[name], atol=0.02)
    run("export", tmp_path / "small", tmp_path / "wide", "--dtype", "float32")
    assert same_trees(read_pack(tmp_path / "wide").params, small.params)
    with pytest.raises(InputError, match="dtype 'int3' is not known; choose one of float32, bfloat16, int8, int4"):
        run("export", tmp_path / "toy", tmp_path / "none", "--dtype", "int3")
    monkeypatch.setattr(load, "load_base", lambda name: FakeBase(name=name))
    export_peft(tmp_path / "adapter", random_pack(expert=False), "tiny")
    run("export", tmp_path / "adapter", tmp_path / "adopted", "--dtype", "int4")
    assert read_pack(tmp_path / "adopted").manifest.quantisation == "int4"


def test_an_adapter_for_another_model_is_noted(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(load, "load_base", lambda name: FakeBase(name=name))
    export_peft(tmp_path / "adapter", random_pack(expert=False), "someone/Other-1B")
    run("export", tmp_path / "adapter", tmp_path / "out", "--json")
    assert "made for someone/Other-1B" in document(capsys)["notes"][0]
