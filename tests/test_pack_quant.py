"""Quantised packs: what their files hold, how large they are, what loading makes of them."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_packs import FakeBase, about, random_pack, same_trees, write_toy

from mbjax.core.config import ModelConfig
from mbjax.core.lora import declare_lora
from mbjax.core.pack import Pack
from mbjax.core.param import abstract_params
from mbjax.core.quant import QTensor, dequantize, is_quantized
from mbjax.core.quantize import quantize_weight
from mbjax.errors import FailureError, InputError
from mbjax.io.pack_check import verify_pack
from mbjax.io.pack_dir import read_pack, update_pack, write_pack
from mbjax.io.pack_load import load_pack
from mbjax.io.pack_manifest import QUANTISATIONS
from mbjax.io.pack_manifest_reader import read_manifest
from mbjax.io.pack_quant import SCHEMES, stored_specs
from mbjax.io.pack_tensors import named

SMOLLM2 = ModelConfig(
    n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=1536, vocab_size=49_152, max_context=8192
)
# Root mean square of the error over that of the values, of random_pack(), seed 0.
PINNED = {"int8": 0.0044, "int4": 0.0564}


@pytest.mark.parametrize("dtype", SCHEMES)
def test_what_is_read_is_the_quantised_pack(tmp_path: Path, dtype: str) -> None:
    pack = random_pack()
    manifest = write_toy(tmp_path / "toy", pack, dtype)
    assert (manifest.dtype, manifest.quantisation) == ("float32", dtype) and not verify_pack(tmp_path / "toy")
    stored, wanted = named(read_pack(tmp_path / "toy").params), named(pack)
    for name, leaf in wanted.items():
        if leaf.ndim != 2:
            assert np.array_equal(stored[name], leaf)
            continue
        turned = name.startswith("lora") and name.endswith(".b")
        once = dequantize(quantize_weight(jnp.asarray(leaf.T if turned else leaf), SCHEMES[dtype]))
        np.testing.assert_allclose(stored[name], once.T if turned else once, atol=1e-6)
        assert stored[name].flags.c_contiguous and stored[name].dtype == np.float32
    pairs = [(stored[name], leaf) for name, leaf in wanted.items() if leaf.ndim == 2]
    error = sum(float(np.square(a - b).sum()) for a, b in pairs) / sum(float(np.square(b).sum()) for _, b in pairs)
    assert round(error**0.5, 4) == PINNED[dtype]


@pytest.mark.parametrize(("dtype", "megabytes"), [("int8", 2.6), ("int4", 1.5)])
def test_rank_16_on_half_the_layers_is_small(dtype: str, megabytes: float) -> None:
    shapes = abstract_params(Pack(lora=declare_lora(SMOLLM2, 16, 16.0)))
    specs = stored_specs(named(shapes), dtype)
    size = sum(kind.itemsize * int(np.prod(shape)) for kind, shape in specs.values())
    assert round(size / 1e6, 1) == megabytes


def test_reading_compiles_nothing(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", random_pack(seed=3), dtype="int4")
    jax.clear_caches()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: compiled.append(name))
    read_pack(tmp_path / "toy")
    assert compiled == []
    jax.jit(lambda x: x * 5.5)(jnp.ones(3))
    assert compiled  # the listener does hear a compilation
    jax.monitoring.clear_event_listeners()


def test_an_update_keeps_the_stored_bits(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", dtype="int4")
    before = (tmp_path / "toy" / "pack.safetensors").read_bytes()
    manifest = update_pack(tmp_path / "toy", card="new", scores=())
    assert (tmp_path / "toy" / "pack.safetensors").read_bytes() == before and manifest.quantisation == "int4"


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_what_cannot_be_quantised_is_not_written(tmp_path: Path, value: float) -> None:
    pack = random_pack(lora=False)
    assert pack.expert is not None
    wrong = dataclasses.replace(pack, expert=dataclasses.replace(pack.expert, out=np.full((16, 8), value, np.float32)))
    with pytest.raises(FailureError, match=r"expert\.out\.scales holds NaN or infinite"):
        write_pack(tmp_path / "toy", wrong, about(), card="x", dtype="int8")


def test_a_manifest_names_one_form(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", dtype="int8")
    document = json.loads((tmp_path / "toy" / "pack.json").read_text())
    with pytest.raises(InputError, match="dtype must be float32 where quantisation is int8"):
        read_manifest(json.dumps(document | {"dtype": "bfloat16"}).encode(), "pack.json")
    assert set(SCHEMES) == set(QUANTISATIONS) - {"none"}


def leaves_of(pack: Pack) -> dict[str, QTensor]:
    paths = jax.tree.leaves_with_path(pack, is_leaf=is_quantized)
    return {jax.tree_util.keystr(path): leaf for path, leaf in paths if leaf.ndim == 2}


@pytest.mark.parametrize("stored", ["float32", *SCHEMES])
@pytest.mark.parametrize("dtype", SCHEMES)
def test_packs_are_held_quantised_where_asked(tmp_path: Path, stored: str, dtype: str) -> None:
    write_toy(tmp_path / "toy", dtype=stored)
    held = leaves_of(load_pack(tmp_path / "toy", FakeBase(), dtype=dtype).params)
    full = leaves_of(load_pack(tmp_path / "toy", FakeBase()).params)
    assert held.keys() == full.keys()
    for path, leaf in held.items():
        low_rank_b = path.startswith(".lora") and path.endswith(".b")
        assert is_quantized(leaf) and leaf.bits == (8 if low_rank_b else SCHEMES[dtype].bits)
        exact = stored == dtype and not low_rank_b
        np.testing.assert_allclose(dequantize(leaf), full[path], atol=1e-6 if exact else 0.2)


def test_packs_are_held_plain_where_asked(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy", dtype="int8")
    auto, half = (load_pack(tmp_path / "toy", FakeBase(), dtype=dtype).params for dtype in ("auto", "bfloat16"))
    assert same_trees(auto, load_pack(tmp_path / "toy", FakeBase(), dtype="float32").params)
    assert half.lora.layers[2].q.a.dtype == jnp.bfloat16 and half.lora.layers[2].q.scale.dtype == jnp.float32
    with pytest.raises(InputError, match="dtype 'int3' is not known"):
        load_pack(tmp_path / "toy", FakeBase(), dtype="int3")
