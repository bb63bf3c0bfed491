"""A layer over few tokens on a graphics card against the same layer operation by operation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from mbjax.core import few_tokens
from mbjax.core.base import declare, run_layers
from mbjax.core.cache import init_cache
from mbjax.core.config import ModelConfig
from mbjax.core.lora import declare_lora
from mbjax.core.param import init_params
from mbjax.core.quant import INT4
from mbjax.core.quantize import RULES, Rule, quantize
from mbjax.kernels import gpu

KINDS = {"qkv_bias": {"qkv_bias": True}, "qk_norm": {"qk_norm": True}, "plain": {}}


@pytest.mark.parametrize(
    ("kind", "dtype", "n_rows", "n_tokens", "n_packs"),
    [
        ("plain", None, 1, 1, 2),
        ("qkv_bias", "int8", 1, 1, 0),
        ("qk_norm", "int4", 3, 1, 1),
        ("plain", None, 1, 3, 0),
        ("qkv_bias", None, 2, 32, 0),
    ],
)
def test_the_layer_is_the_same(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: str | None, n_rows: int, n_tokens: int, n_packs: int
) -> None:
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))
    monkeypatch.setattr(triton, "debug_barrier", lambda: None)  # which the interpreter does not know
    config = ModelConfig(
        n_layers=1, d_model=64, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=96, vocab_size=64, max_context=128,
        **KINDS[kind],
    )  # fmt: skip
    params = init_params(declare(config), jax.random.key(0))
    if dtype is not None:
        params, _ = quantize(params, RULES[dtype], place=lambda q: q)
    lora = init_params(declare_lora(config, 16, 16.0, layers=[0]), jax.random.key(1))
    lora = jax.tree.map(lambda x: x + 0.03 if x.ndim == 2 else x, lora)
    off = jax.tree.map(lambda x: x * jnp.nan, lora)
    deltas = (lora.layers[0], off.layers[0])[:n_packs]
    gates = jnp.zeros((n_rows, n_tokens, n_packs)).at[0, :, :1].set(0.7)
    seats, starts = jnp.asarray([2, 0, 3][:n_rows], jnp.int32), jnp.asarray([5, 0, 96][:n_rows], jnp.int32)
    positions = starts[:, None] + jnp.arange(n_tokens, dtype=jnp.int32)[None]
    cache = init_cache(config, 4, 128).layers
    h = jax.random.normal(jax.random.key(2), (n_rows, n_tokens, 64))
    want, (kv,) = run_layers(params.layers, h, positions, cache, config, (deltas,), gates, None, seats)
    arrivals = jnp.zeros((n_rows * 2,), jnp.int32)
    layer = params.layers[0]
    got, mine, arrivals = few_tokens.run(layer, h, positions, cache[0], deltas, gates, None, seats, arrivals, config)
    assert not arrivals.any()
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mine, kv)


def test_a_layer_whose_gate_is_stored_unlike_its_up_is_left_to_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "available", lambda: True)
    config = ModelConfig(
        n_layers=1, d_model=64, n_heads=4, n_kv_heads=2, head_dim=64, d_ff=96, vocab_size=64, max_context=128
    )
    params = init_params(declare(config), jax.random.key(0))
    kv, h = init_cache(config, 1, 128).layers[0], jnp.zeros((1, 1, 64))
    alike, _ = quantize(params, RULES["int8"], place=lambda q: q)
    mixed, _ = quantize(params, (Rule(r"\.gate$", INT4), *RULES["int8"]), place=lambda q: q)
    assert few_tokens.takes(alike.layers[0], h, kv, ()) and not few_tokens.takes(mixed.layers[0], h, kv, ())
