"""The key/value cache: where writes land, and what they leave alone."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ODD, PLAIN

from mbjax.core import cache as cache_module
from mbjax.core.cache import LayerKV, append, init_cache, write_rows


def test_an_empty_cache_has_the_declared_shapes() -> None:
    cache = init_cache(PLAIN, 3, 40, "bfloat16")
    assert len(cache.layers) == PLAIN.n_layers
    for layer in cache.layers:
        assert layer.k.shape == layer.v.shape == (3, PLAIN.n_kv_heads, 40, PLAIN.head_dim)
        assert layer.k.dtype == jnp.bfloat16
    assert cache.capacity == 40
    assert np.array_equal(np.asarray(cache.length), [0, 0, 0])
    assert cache.length.dtype == jnp.int32
    assert cache.experts == () and cache.tap is None


def test_an_expert_brings_layers_of_its_own_and_the_tap_states() -> None:
    expert = dataclasses.replace(PLAIN, n_layers=1)
    cache = init_cache(ODD, 2, 16, experts=(None, expert))
    assert cache.experts[0] is None
    assert cache.experts[1] is not None and cache.experts[1][0].k.shape == (2, 2, 16, PLAIN.head_dim)
    assert cache.tap is not None and cache.tap.shape == (2, 16, ODD.d_model)


def test_append_writes_each_lane_at_its_own_place() -> None:
    empty = LayerKV(*(jnp.full((2, 3, 8, 4), fill, jnp.float32) for fill in (-1, -2)))
    k = np.random.default_rng(0).standard_normal((2, 2, 3, 4)).astype(np.float32)
    filled = append(empty, jnp.asarray(k), jnp.asarray(k + 1), jnp.asarray([0, 5], jnp.int32))
    for written, new, blank in ((filled.k, k, -1), (filled.v, k + 1, -2)):
        expected = np.full((2, 3, 8, 4), blank, np.float32)
        expected[0, :, 0:2] = new[0].swapaxes(0, 1)
        expected[1, :, 5:7] = new[1].swapaxes(0, 1)
        assert np.array_equal(np.asarray(written), expected)


def test_append_rounds_to_the_caches_dtype() -> None:
    kv = LayerKV(*(jnp.zeros((1, 1, 2, 2), jnp.bfloat16) for _ in range(2)))
    third = jnp.full((1, 1, 1, 2), 1 / 3, jnp.float32)
    filled = append(kv, third, third, jnp.zeros(1, jnp.int32))
    assert filled.k.dtype == jnp.bfloat16
    assert filled.k[0, 0, 0, 0] == jnp.bfloat16(1 / 3)


@pytest.mark.parametrize(
    ("lanes", "new", "axis"), [((9, 3, 8, 4), (5, 3, 2, 4), 1), ((9, 3, 8), (5, 3, 2), 1), ((9, 8, 4), (5, 2, 4), 0)]
)
def test_many_rows_are_written_as_few_are(monkeypatch, lanes, new, axis) -> None:
    rng = np.random.default_rng(0)
    arrays = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in (lanes, new))
    old, rows = arrays
    start, seats = jnp.asarray([0, 5, 1, 6, 3], jnp.int32), jnp.asarray([7, 0, 3, 8, 2], jnp.int32)
    few = write_rows(old, rows, start, seats, axis)
    monkeypatch.setattr(cache_module, "_ONE_BY_ONE", 4)
    many = write_rows(old, rows, start, seats, axis)
    assert np.array_equal(np.asarray(few), np.asarray(many)) and not np.array_equal(np.asarray(few), np.asarray(old))
