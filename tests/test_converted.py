"""The converted cache: used when whole, made anew when not, never half there."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import jax
import ml_dtypes
import numpy as np
import pytest
from tiny_bases import CONFIG, random_weights, write_gguf, write_hf, write_tensors

from mbjax.core.quant import INT4
from mbjax.errors import FailureError, InputError
from mbjax.io import converted as module
from mbjax.io.converted import converted
from mbjax.io.safetensors_file import map_tensors
from mbjax.io.source import source_key


@pytest.fixture
def gguf(tmp_path):
    return write_gguf(tmp_path / "x.gguf", random_weights())


@pytest.fixture
def conversions(monkeypatch):
    """The sources opened so far."""
    opened, open_source = [], module.open_source
    monkeypatch.setattr(module, "open_source", lambda path: opened.append(path) or open_source(path))
    return opened


def test_the_second_time_the_source_is_not_opened(home, gguf, conversions):
    first = converted(gguf, "auto")
    second = converted(gguf, "auto")
    assert conversions == [gguf]
    assert first.directory == second.directory and first.config == second.config == CONFIG
    assert first.digest == second.digest and first.tokenizer.digest == second.tokenizer.digest
    tensors = map_tensors(second.weights)
    assert tensors.keys() == random_weights().keys()
    for name, array in random_weights().items():
        np.testing.assert_array_equal(tensors[name], array)


def test_the_content_is_the_key(home, gguf, tmp_path, conversions):
    converted(gguf, "auto")
    shutil.copy(gguf, tmp_path / "copy.gguf")
    assert converted(tmp_path / "copy.gguf", "auto").directory == converted(gguf, "float32").directory
    assert len(conversions) == 1
    other = write_gguf(tmp_path / "y.gguf", random_weights(seed=1))
    assert converted(other, "auto").digest != converted(gguf, "auto").digest


def test_each_dtype_has_an_entry_and_the_same_digest(home, tmp_path, conversions):
    weights = {name: a.astype(ml_dtypes.bfloat16) for name, a in random_weights().items()}
    path = write_hf(tmp_path / "hf", weights)
    half, full = converted(path, "bfloat16"), converted(path, "float32")
    assert half.digest == full.digest and half.stored == full.stored == "bfloat16"
    assert converted(path, "auto").directory == half.directory and len(conversions) == 2
    tensors = map_tensors(half.weights)
    kinds = {(array.ndim, array.dtype.name) for array in tensors.values()}
    assert kinds == {(1, "float32"), (2, "bfloat16")}


@pytest.mark.parametrize("dtype", ["auto", "int8", "int4"])
def test_quantised_weights_are_kept_and_not_made_twice(home, tmp_path, conversions, monkeypatch, dtype):
    path = write_gguf(tmp_path / "x.gguf", random_weights(), matrices="Q4_1")
    first = converted(path, dtype)
    monkeypatch.setattr(module, "quantise", lambda *_: pytest.fail("quantised a second time"))
    assert converted(path, dtype).directory == first.directory and conversions == [path]
    assert first.digest == converted(path, "float32").digest
    own = {"model.layers.0.mlp.up_proj.weight.values", "model.layers.0.mlp.up_proj.weight.scales"}
    tensors = map_tensors(first.weights)
    assert own < tensors.keys() and "model.layers.0.mlp.up_proj.weight" not in tensors
    assert tensors["model.norm.weight"].dtype == np.float32


STARTER = """
import sys, time
from pathlib import Path
from mbjax.io import converted as module

write_entry, n_written = module._write_entry, []
module._write_entry = lambda *args: n_written.append(write_entry(*args))
source, ready, go = (Path(arg) for arg in sys.argv[1:])
ready.touch()
while not go.exists():
    time.sleep(0.001)
entry = module.converted(source, "int8")
print(len(n_written), entry.directory)
"""


def test_of_two_first_starts_at_once_one_converts_and_both_get_the_entry(home, gguf, tmp_path):
    go, ready = tmp_path / "go", [tmp_path / name for name in ("one", "two")]
    environment = os.environ | {"MBJAX_HOME": str(home)}
    command = [sys.executable, "-c", STARTER, str(gguf)]
    starts = [
        subprocess.Popen(
            [*command, str(mark), str(go)], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for mark in ready
    ]
    deadline = time.monotonic() + 60
    while not all(mark.exists() for mark in ready) and time.monotonic() < deadline:
        time.sleep(0.01)
    go.touch()
    results = [start.communicate(timeout=60) for start in starts]
    assert [start.returncode for start in starts] == [0, 0], results
    n_written, directories = zip(*(out.split(maxsplit=1) for out, _ in results), strict=True)
    assert sorted(n_written) == ["0", "1"] and len(set(directories)) == 1


def reshaped(entry, change):
    """The weights of an entry written anew, a whole file, with some tensors changed."""
    tensors = {name: np.array(array) for name, array in map_tensors(entry.weights).items()}
    change(tensors)
    write_tensors(entry.weights, tensors)
    files = json.loads((entry.directory / "base.json").read_text())["files"]
    edited(entry, "files", files | {"weights.safetensors": entry.weights.stat().st_size})


NAME = "model.layers.0.mlp.up_proj.weight"
CHANGES = {
    "scales gone": lambda t: t.pop(f"{NAME}.scales"),
    "values plain": lambda t: t.update({f"{NAME}.values": t[f"{NAME}.values"].reshape(96, -1)}),
    "scales of another group": lambda t: t.update({f"{NAME}.scales": t[f"{NAME}.scales"][:, :1]}),
    "no groups": lambda t: t.update({f"{NAME}.scales": t[f"{NAME}.scales"][:, :0]}),
    "int8 with minima": lambda t: t.update({f"{NAME}.values": t[f"{NAME}.values"].view(np.int8)}),
    "float64": lambda t: t.update({f"{NAME}.scales": t[f"{NAME}.scales"].astype(np.float64)}),
    "norm in float16": lambda t: t.update({"model.norm.weight": t["model.norm.weight"].astype(np.float16)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_quantised_weights_of_another_form_are_made_anew(home, tmp_path, conversions, change):
    entry = converted(write_gguf(tmp_path / "x.gguf", random_weights(), matrices="Q4_1"), "int4")
    whole = entry.weights.read_bytes()
    reshaped(entry, CHANGES[change])
    assert converted(conversions[0], "int4").weights.read_bytes() == whole and len(conversions) == 2


def test_quantising_in_pieces_is_quantising(monkeypatch):
    w = np.random.default_rng(0).standard_normal((100, 70)).astype(np.float32)
    whole = module.quantise(w, INT4)
    monkeypatch.setattr(module, "_CHUNK", 70 * 32)
    assert jax.tree.all(jax.tree.map(np.array_equal, module.quantise(w, INT4), whole))


def test_every_file_of_a_directory_is_in_its_key(home, tmp_path):
    path = write_hf(tmp_path / "hf", random_weights(), shards=2)
    keys = {source_key(path)}
    (path / "README.md").write_text("not part of the base")
    assert source_key(path) in keys
    for name in ("config.json", "tokenizer.json", "model-00001.safetensors"):
        (path / name).write_bytes((path / name).read_bytes() + b" ")
        keys.add(source_key(path))
    (path / "chat_template.jinja").write_text("x")
    assert len(keys | {source_key(path)}) == 5


def edited(entry, key, value):
    content = json.loads((entry.directory / "base.json").read_text())
    (entry.directory / "base.json").write_text(json.dumps(content | {key: value}))


DAMAGE = {
    "weights cut": lambda entry: os.truncate(entry.weights, 1000),
    "weights gone": lambda entry: entry.weights.unlink(),
    "header": lambda entry: entry.weights.write_bytes(b"\xff" * entry.weights.stat().st_size),
    "no tokenizer": lambda entry: shutil.rmtree(entry.directory / "tokenizer"),
    "tokenizer": lambda entry: (entry.directory / "tokenizer" / "tokenizer.json").write_text("{}"),
    "no base.json": lambda entry: (entry.directory / "base.json").unlink(),
    "base.json cut": lambda entry: os.truncate(entry.directory / "base.json", 50),
    "format": lambda entry: edited(entry, "format", 99),
    "dtype": lambda entry: edited(entry, "dtype", "bfloat16"),
    "config": lambda entry: edited(entry, "config", {}),
    "digest": lambda entry: edited(entry, "digest", "x"),
    "tokenizer digest": lambda entry: edited(entry, "tokenizer", "0" * 64),
    "files": lambda entry: edited(entry, "files", {"nowhere": 3}),
    "a file in its place": lambda entry: (shutil.rmtree(entry.directory), entry.directory.write_text("x")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_entry_is_made_anew(home, gguf, conversions, damage):
    entry = converted(gguf, "auto")
    DAMAGE[damage](entry)
    again = converted(gguf, "auto")
    assert len(conversions) == 2 and again.digest == entry.digest
    np.testing.assert_array_equal(
        map_tensors(again.weights)["model.norm.weight"], random_weights()["model.norm.weight"]
    )
    assert os.listdir(home / "bases") == [entry.directory.name]


def test_a_full_disk_is_one_line_and_leaves_nothing(home, gguf, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "write_safetensors", full)
    with pytest.raises(FailureError, match="disk is full"):
        converted(gguf, "auto")
    assert os.listdir(home / "bases") == []


def test_a_wrong_source_leaves_nothing(home, tmp_path):
    weights = random_weights()
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = np.nan
    with pytest.raises(InputError, match="tensor model.layers.1.mlp.up_proj.weight holds numbers that are not finite"):
        converted(write_gguf(tmp_path / "x.gguf", weights), "auto")
    assert os.listdir(home / "bases") == []
