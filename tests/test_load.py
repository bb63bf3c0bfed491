"""`load_base` over every kind of source, good and bad."""

import dataclasses
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from tiny_bases import CONFIG, hf_config, random_weights, write_gguf, write_hf, write_tensors

from mbjax.core.base import declare
from mbjax.core.param import mismatches
from mbjax.core.quant import dequantize
from mbjax.core.quantize import RULES, quantize
from mbjax.engine.programs import shapes_of
from mbjax.errors import InputError, MbjaxError
from mbjax.io.base_forms import abstract_base, base_forms
from mbjax.io.describe import describe_base
from mbjax.io.load import load_base
from mbjax.io.source import open_source


def refused(path, *reasons: str, dtype: str = "auto") -> None:
    with pytest.raises(InputError) as caught:
        load_base(path, dtype)
    assert all(reason in str(caught.value) for reason in reasons), caught.value
    assert "\n" not in str(caught.value)


def test_gguf_and_hf_are_the_same_base(home, tmp_path):
    weights = random_weights()
    gguf = load_base(write_gguf(tmp_path / "tiny.gguf", weights))
    hf = load_base(str(write_hf(tmp_path / "hf", weights, shards=2)))
    assert gguf.digest == hf.digest and gguf.config == hf.config == CONFIG
    assert (gguf.name, hf.name) == ("tiny", "hf") and gguf.source == tmp_path / "tiny.gguf"
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), gguf.params, hf.params))
    assert not mismatches(declare(CONFIG), gguf.params)
    np.testing.assert_array_equal(gguf.params.layers[1].attn.k, weights["model.layers.1.self_attn.k_proj.weight"])
    assert gguf.tokenizer.encode("a test") == hf.tokenizer.encode("a test")
    assert gguf.template_digest is None


def test_an_untied_head_and_every_optional_part(home, tmp_path):
    config = dataclasses.replace(CONFIG, tied_head=False, qkv_bias=True)
    weights = random_weights(config)
    raw = hf_config(config, "Qwen2ForCausalLM")
    base = load_base(write_hf(tmp_path / "qwen2", weights, raw))
    np.testing.assert_array_equal(base.params.head, weights["lm_head.weight"])
    np.testing.assert_array_equal(base.params.layers[0].attn.v_bias, weights["model.layers.0.self_attn.v_proj.bias"])
    gguf = load_base(write_gguf(tmp_path / "qwen2.gguf", weights, config, architecture="qwen2"))
    assert gguf.digest == base.digest
    config = dataclasses.replace(CONFIG, qk_norm=True)
    weights = random_weights(config)
    base = load_base(write_hf(tmp_path / "qwen3", weights, hf_config(config, "Qwen3ForCausalLM")))
    np.testing.assert_array_equal(base.params.layers[0].attn.q_norm, weights["model.layers.0.self_attn.q_norm.weight"])
    gguf = load_base(write_gguf(tmp_path / "qwen3.gguf", weights, config, architecture="qwen3"))
    assert gguf.digest == base.digest


def test_dtypes(home, tmp_path):
    weights = random_weights()
    path = write_gguf(tmp_path / "x.gguf", weights)
    full, half = load_base(path), load_base(path, "bfloat16")
    assert full.params.embed.dtype == np.float32 and half.params.embed.dtype == ml_dtypes.bfloat16
    assert half.params.norm.dtype == half.params.layers[0].mlp.norm.dtype == np.float32
    assert half.digest == full.digest
    stored = {name: array.astype(np.float16) for name, array in weights.items()}
    assert load_base(write_hf(tmp_path / "hf", stored)).params.embed.dtype == ml_dtypes.bfloat16
    refused(path, "dtype 'int3' is not known", "float32", dtype="int3")


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_when_loaded(home, tmp_path, dtype):
    weights = random_weights()
    path = write_hf(tmp_path / "hf", weights)
    base, full = load_base(path, dtype), load_base(path)
    assert base.digest == full.digest
    wanted, idle = quantize(full.params, RULES[dtype])
    assert not idle and jax.tree.structure(base.params) == jax.tree.structure(wanted)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), base.params, wanted))
    assert base.params.embed.bits == 8 and base.params.layers[1].mlp.up.bits == int(dtype[3:])
    assert base.params.layers[0].attn.norm.dtype == base.params.norm.dtype == np.float32
    described = describe_base(path)
    planned = abstract_base(base.config, base_forms(base.config, dtype, described.blocks))
    assert shapes_of(planned) == shapes_of(base.params)


@pytest.mark.parametrize(
    ("kind", "dtype", "bits"), [("Q8_0", "int8", 8), ("Q4_0", "int4", 4), ("Q4_1", "int4", 4), ("Q4_1", "auto", 4)]
)
def test_blocks_of_a_gguf_are_carried_over_exactly(home, tmp_path, kind, dtype, bits):
    path = write_gguf(tmp_path / "x.gguf", random_weights(), matrices=kind)
    base, full = load_base(path, dtype), load_base(path, "float32")
    assert base.digest == full.digest
    for target in ("q", "k", "v", "o"):  # q and k have their rows in another order in the file
        carried = getattr(base.params.layers[1].attn, target)
        assert carried.tiled and carried.bits == bits and (carried.mins is not None) == (kind == "Q4_1")
        assert (dequantize(carried) == getattr(full.params.layers[1].attn, target)).all()
    if dtype == "auto":
        assert (dequantize(base.params.embed) == full.params.embed).all()
        description = describe_base(path)
        planned = abstract_base(base.config, base_forms(base.config, description.dtype, description.blocks))
        assert shapes_of(planned) == shapes_of(base.params)


def test_what_lies_beyond_float16_is_not_quantised(home, tmp_path):
    weights = random_weights()
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = 1e8
    path = write_hf(tmp_path / "hf", weights)
    refused(path, "tensor model.layers.1.mlp.up_proj.weight", "beyond float16's range", "float32", dtype="int4")
    assert load_base(path, "float32").params.layers[1].mlp.up[3, 3] == 1e8


@pytest.mark.skipif(sys.platform != "linux" or jax.default_backend() != "cpu", reason="reads /proc; host memory only")
def test_weights_are_the_pages_of_the_file(home, tmp_path):
    path = write_gguf(tmp_path / "x.gguf", random_weights())
    base, quantised = load_base(path), load_base(path, "int4")
    pages = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "weights.safetensors" in line:
            pages.append([int(end, 16) for end in line.split()[0].split("-")])
    for leaf in jax.tree.leaves((base.params, quantised.params)):
        assert any(begin <= leaf.unsafe_buffer_pointer() < end for begin, end in pages)


def test_spare_tensors_have_no_say(home, tmp_path):
    weights = random_weights()
    plain = load_base(write_hf(tmp_path / "plain", weights))
    extra = {
        "lm_head.weight": weights["model.embed_tokens.weight"],
        "model.rotary_emb.inv_freq": np.ones(8, np.float32),
    }
    assert load_base(write_hf(tmp_path / "extra", weights | extra)).digest == plain.digest


def test_mismatches_name_every_key_path(home, tmp_path):
    weights = random_weights()
    del weights["model.layers.0.self_attn.q_proj.weight"]
    weights["model.layers.1.mlp.down_proj.weight"] = np.zeros((3, 4), np.float32)
    weights["model.layers.1.self_attn.o_proj.bias"] = np.zeros(3, np.float32)
    refused(
        write_hf(tmp_path / "hf", weights),
        ".layers[0].attn.q: missing, expected shape (64, 64)",
        ".layers[1].mlp.down: shape (3, 4), expected (64, 96)",
        "model.layers.1.self_attn.o_proj.bias: no such parameter",
    )


def test_absurd_sizes_are_refused_before_anything_is_allocated(home, tmp_path):
    raw = hf_config()
    for i, (change, reason) in enumerate(
        [
            ({"num_hidden_layers": 2_000_000_000}, "n_layers"),
            ({"num_hidden_layers": 1000}, "announces 1000 layers"),
            ({"head_dim": 2_000_000_000}, "head_dim"),
            ({"vocab_size": 2_000_000_000}, "vocab_size"),
            ({"vocab_size": 8_000_000}, ".embed: shape (416, 64), expected (8000000, 64)"),
        ]
    ):
        refused(write_hf(tmp_path / str(i), random_weights(), raw | change), reason)


def test_a_tokenizer_larger_than_the_embedding_is_refused(home, tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=200)
    path = write_gguf(tmp_path / "x.gguf", random_weights(config), config)
    refused(path, "x.gguf: the tokenizer has", "the embedding 200 rows")


def test_a_missing_tokenizer_is_refused(home, tmp_path):
    path = write_hf(tmp_path / "hf", random_weights())
    (path / "tokenizer.json").unlink()
    refused(path, "tokenizer.json")
    refused(
        write_gguf(tmp_path / "x.gguf", random_weights(), extra={"tokenizer.ggml.model": "none"}), "x.gguf", "'none'"
    )


def test_names_and_paths_that_lead_nowhere(home, tmp_path):
    refused(tmp_path / "none", "none: no such file or directory")
    refused(str(tmp_path / "none"), "none: no such file or directory")
    refused("none.gguf", "none.gguf: no such file or directory")
    refused(tmp_path, "holds no config.json")
    refused("smollm2-135n", "smollm2-135m")


def test_files_of_another_kind(home, tmp_path):
    for name, data in (("x.gguf", b""), ("x.gguf", b"PK\x03\x04" * 100), ("x.safetensors", b"{}" * 50)):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, name)
    path = write_hf(tmp_path / "hf", random_weights())
    (path / "model.safetensors").write_bytes(b"")
    refused(path, "model.safetensors", "empty")
    write_tensors(path / "model.safetensors", {"a": np.zeros(3, np.int32)})
    refused(path, "tensor a is int32")


def read_all(path) -> None:
    source = open_source(path)
    source.read_tokenizer()
    for name in ("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"):
        source.read(name)


def test_flipped_bits_in_a_whole_gguf_are_refused_or_read(tmp_path):
    path = write_gguf(tmp_path / "x.gguf", random_weights(), matrices="Q8_0")
    whole = path.read_bytes()
    end = 24 + whole.index(b"token_embd.weight")
    rng = np.random.default_rng(3)
    outcomes = set()
    for _ in range(250):
        mutant = bytearray(whole)
        # half of the flips outside the tokenizer's long lists
        first = whole.index(b"tokenizer.ggml.tokens")
        low, high = (0, first) if rng.integers(2) else (0, end)
        mutant[rng.integers(low, high)] ^= 1 << rng.integers(0, 8)
        path.write_bytes(mutant)
        try:
            read_all(path)
            outcomes.add("read")
        except MbjaxError as error:
            assert "\n" not in str(error) and "x.gguf" in str(error)
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_flipped_bits_in_a_directory_are_refused_or_read(tmp_path):
    path = write_hf(tmp_path / "hf", random_weights())
    rng = np.random.default_rng(4)
    outcomes = set()
    for name, limit in (("model.safetensors", 2500), ("config.json", 10_000), ("tokenizer.json", 10_000)):
        whole = (path / name).read_bytes()
        for _ in range(100):
            mutant = bytearray(whole)
            mutant[rng.integers(0, min(limit, len(whole)))] ^= 1 << rng.integers(0, 8)
            (path / name).write_bytes(mutant)
            try:
                read_all(path)
                outcomes.add("read")
            except MbjaxError as error:
                assert "\n" not in str(error)
                outcomes.add("refused")
        (path / name).write_bytes(whole)
    assert outcomes == {"read", "refused"}


@pytest.mark.slow
def test_the_default_base(smollm2):
    assert smollm2.digest == "cf00c0a00c72d53887d9b75e9700aee4697eeb51814f80ecf46e20e9a030c0b3"
    assert smollm2.config.n_layers == 30 and smollm2.params.embed.shape == (49_152, 576)
    assert smollm2.tokenizer.vocab_size == 49_152 and smollm2.template_digest is not None
