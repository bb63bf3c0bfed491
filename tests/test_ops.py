"""The operations of a block against their formulas in numpy float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbjax.core.cache import LayerKV
from mbjax.core.ops import attend, attend_cached, linear, rms_norm, rope, row_sum


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Softmax attention up to each query's position, head by head: [B, T, H, E], [B, S, K, E] -> [B, T, H, E]."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    per_kv = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(*q.shape[:3]):
        n_seen = positions[b, t] + 1
        keys, values = k[b, :n_seen, h // per_kv], v[b, :n_seen, h // per_kv]
        scores = keys @ q[b, t, h] / np.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max())
        out[b, t, h] = weights @ values / weights.sum()
    return out


def test_rms_norm_is_the_formula() -> None:
    x, weight = normal(2, 3, 24), normal(24, seed=1)
    expected = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(rms_norm(jnp.asarray(x), jnp.asarray(weight), 1e-5), expected, rtol=2e-6, atol=1e-6)


def test_rms_norm_of_bfloat16_is_computed_in_float32() -> None:
    x, weight = jnp.asarray(normal(4, 64), jnp.bfloat16), jnp.asarray(normal(64, seed=1))
    wide = rms_norm(x.astype(jnp.float32), weight, 1e-5)
    narrow = rms_norm(x, weight, 1e-5)
    assert narrow.dtype == jnp.bfloat16
    assert np.array_equal(np.asarray(narrow), np.asarray(wide.astype(jnp.bfloat16)))


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_linear_is_the_product_with_out_in_weights(rows: int) -> None:
    x, weight, bias = normal(rows, 1, 7), normal(5, 7, seed=1), normal(5, seed=2)
    y = linear(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(bias))
    np.testing.assert_allclose(y, x @ weight.T + bias, rtol=1e-5, atol=1e-6)


def test_linear_keeps_bfloat16_and_accumulates_in_float32() -> None:
    x = jnp.ones((1, 1024), jnp.bfloat16)
    weight = jnp.full((1, 1024), 1.0 + 2**-7, jnp.bfloat16)
    y = linear(x, weight)
    assert y.dtype == jnp.bfloat16
    assert float(y[0, 0]) == 1032.0  # summed in bfloat16 the terms would be lost beyond 256


def test_row_sum_has_the_same_bits_for_any_number_of_rows() -> None:
    x = normal(64, 576)
    summed = jax.jit(row_sum)
    whole = np.asarray(summed(jnp.asarray(x)))
    np.testing.assert_allclose(whole, x.astype(np.float64).sum(axis=-1), rtol=1e-4, atol=1e-4)
    for rows in (1, 2, 3, 8):
        assert np.array_equal(np.asarray(summed(jnp.asarray(x[:rows]))), whole[:rows]), rows


def test_rope_turns_the_two_halves() -> None:
    x, freq = normal(2, 3, 2, 8), (1.0, 0.3, 0.1, 0.01)
    positions = np.asarray([[0, 1, 2], [500, 7, 3000]], np.int32)
    angle = positions[:, :, None, None].astype(np.float64) * np.asarray(freq, np.float32).astype(np.float64)
    pairs = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angle)
    expected = np.concatenate([pairs.real, pairs.imag], axis=-1)
    actual = rope(jnp.asarray(x), jnp.asarray(positions), freq)
    np.testing.assert_allclose(actual, expected, atol=2e-4)
    assert np.array_equal(np.asarray(actual)[0, 0], x[0, 0]), "position 0 turns nothing"


def test_scores_of_rotated_heads_depend_on_the_distance_alone() -> None:
    q, k, freq = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1), (1.0, 0.3, 0.1, 0.01)

    def score(at_q: int, at_k: int) -> float:
        turned = [rope(jnp.asarray(x), jnp.full((1, 1), at, jnp.int32), freq) for x, at in ((q, at_q), (k, at_k))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


@pytest.mark.parametrize("n_heads, n_kv", [(4, 2), (3, 3), (4, 1)])
def test_attend_is_causal_softmax(n_heads: int, n_kv: int) -> None:
    q, k, v = normal(2, 7, n_heads, 8), normal(2, 7, n_kv, 8, seed=1), normal(2, 7, n_kv, 8, seed=2)
    expected = attention(q, k, v, np.tile(np.arange(7), (2, 1)))
    actual = attend(*(jnp.asarray(x) for x in (q, k, v)))
    np.testing.assert_allclose(actual, expected.reshape(2, 7, -1), atol=2e-6)


@pytest.mark.parametrize("capacity", [40, 512, 544])  # one block; several; blocks smaller than usual
def test_attend_cached_reads_each_lane_up_to_its_position(capacity: int) -> None:
    n_tokens, starts = 5, np.asarray([0, 30, capacity - 5])
    positions = (starts[:, None] + np.arange(n_tokens)).astype(np.int32)
    q = normal(3, n_tokens, 4, 8)
    k, v = normal(3, capacity, 2, 8, seed=1), normal(3, capacity, 2, 8, seed=2)
    expected = attention(q, k, v, positions)
    kv = LayerKV(*(jnp.asarray(x.swapaxes(1, 2)) for x in (k, v)))
    actual = attend_cached(jnp.asarray(q), kv, jnp.asarray(positions))
    np.testing.assert_allclose(actual, expected.reshape(3, n_tokens, -1), atol=2e-6)


def test_attend_cached_equals_attend() -> None:
    q, k, v = normal(2, 9, 4, 8), normal(2, 9, 2, 8, seed=1), normal(2, 9, 2, 8, seed=2)
    filled = [np.pad(x, ((0, 0), (0, 7), (0, 0), (0, 0)), constant_values=1e6).swapaxes(1, 2) for x in (k, v)]
    positions = jnp.asarray(np.tile(np.arange(9, dtype=np.int32), (2, 1)))
    cached = attend_cached(jnp.asarray(q), LayerKV(*(jnp.asarray(x) for x in filled)), positions)
    whole = attend(*(jnp.asarray(x) for x in (q, k, v)))
    np.testing.assert_allclose(cached, whole, atol=2e-6)


def test_attention_survives_scores_that_overflow_exp() -> None:
    q, k = np.full((1, 2, 1, 2), 300.0, np.float32), np.full((1, 2, 1, 2), 300.0, np.float32)
    v = normal(1, 2, 1, 2)
    kv = LayerKV(*(jnp.asarray(x.swapaxes(1, 2)) for x in (k, v)))
    for out in (attend(*(jnp.asarray(x) for x in (q, k, v))), attend_cached(jnp.asarray(q), kv, jnp.asarray([[0, 1]]))):
        np.testing.assert_allclose(out[0, 0], v[0, 0, 0], atol=1e-6)
        np.testing.assert_allclose(out[0, 1], v[0, :, 0].mean(axis=0), atol=1e-6)
