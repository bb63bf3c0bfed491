"""The kernels for graphics cards against plain JAX, run by Pallas' interpreter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from mbjax.core.cache import LayerKV, append
from mbjax.core.ops import rms_norm, rope
from mbjax.core.quant import INT4, INT8, Scheme, dequantize
from mbjax.core.quantize import quantize_weight
from mbjax.kernels import twins
from mbjax.kernels.gpu import rows
from mbjax.kernels.gpu.attention import attend
from mbjax.kernels.gpu.linear import Weight, linears
from mbjax.kernels.gpu.low_rank import Delta, add_deltas
from mbjax.kernels.gpu.one_token import attend_one
from mbjax.kernels.gpu.place import place
from mbjax.kernels.part import Part


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pl, "pallas_call", functools.partial(pl.pallas_call, interpret=True))


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def close(got: jax.Array, want: jax.Array) -> None:
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))


@pytest.mark.parametrize("scheme", [None, INT8, INT4, Scheme(4)], ids=["float", "int8", "int4", "int4 symmetric"])
def test_products_with_norm_bias_and_residual(scheme: Scheme | None) -> None:
    x, norm, bias, residual = normal(0, 1, 192), 1 + normal(1, 192), normal(2, 16), normal(3, 1, 64)
    floats = [normal(4, 64, 192), normal(5, 16, 192)]
    stored = [w if scheme is None else quantize_weight(w, scheme) for w in floats]
    parts = [(w,) if scheme is None else (w.values, w.scales, w.mins) for w in stored]
    wide = floats if scheme is None else [dequantize(w) for w in stored]
    got = linears(x, [Weight(*parts[0], residual=residual), Weight(*parts[1], bias=bias)], norm=norm, eps=1e-5)
    normed = rms_norm(x, norm, 1e-5)
    close(got[0], jnp.einsum("ri,oi->ro", normed, wide[0]) + residual)
    close(got[1], jnp.einsum("ri,oi->ro", normed, wide[1]) + bias[None])


def test_a_pair_is_gated() -> None:
    x, norm, gate, up = normal(0, 1, 96), 1 + normal(1, 96), normal(2, 16, 96), normal(3, 16, 96)
    got = linears(x, [Weight(gate), Weight(up)], norm=norm, eps=1e-5, gated=True)
    a, b = (jnp.einsum("ri,oi->ro", rms_norm(x, norm, 1e-5), w) for w in (gate, up))
    close(got[0], jax.nn.silu(a) * b)
    delta = Delta(0, normal(4, 1, 16), normal(5, 16, 16), jnp.float32(2))
    got = add_deltas([a, b], [[delta], []], jnp.full((1, 1), 0.5), gated=True)
    close(got[0], jax.nn.silu(a + jnp.einsum("rk,ok->ro", delta.low, delta.b)) * b)


def test_small_products_of_many_rows_are_one_launch() -> None:
    x, a, b = normal(0, 96, 128), normal(1, 192, 128), normal(2, 64, 128)
    bias, residual = normal(3, 192), normal(4, 96, 64)
    weights = [Weight(a, bias=bias), Weight(b, residual=residual)]
    assert rows.fits(96, weights, 128)
    first, second = rows.products(x, weights)
    close(first, x @ a.T + bias[None])
    close(second, residual + x @ b.T)


def test_products_that_are_not_small_are_left_to_xla() -> None:
    plain, bits = Weight(jnp.zeros((128, 128))), Weight(jnp.zeros((128, 128), jnp.int8), jnp.zeros((128, 4)))
    assert rows.fits(512, [plain] * 10, 128) and not rows.fits(512, [plain] * 11, 128)
    assert not rows.fits(48, [plain], 128) and not rows.fits(64, [Weight(jnp.zeros((96, 128)))], 128)
    assert not rows.fits(64, [bits], 128) and not rows.fits(64, [Weight(jnp.zeros((128, 2048)))], 2048)


@pytest.mark.parametrize(
    ("n_tokens", "heads", "kv_heads", "capacity", "dtype"),
    [(1, 14, 2, 256, "float32"), (3, 8, 2, 256, "int8"), (20, 4, 2, 192, "float32"), (40, 6, 2, 192, "float32")],
)
def test_attention_reads_what_is_valid(n_tokens: int, heads: int, kv_heads: int, capacity: int, dtype: str) -> None:
    q = normal(0, 3, n_tokens, heads, 32)
    k, v = normal(1, 4, kv_heads, capacity, 32), normal(2, 4, kv_heads, capacity, 32)
    starts, seats = jnp.asarray([0, capacity - n_tokens, 37], jnp.int32), jnp.asarray([2, 0, 3], jnp.int32)
    cache: tuple = (k, v, None, None)
    if dtype == "int8":
        (k, k_scales), (v, v_scales) = twins.quantize_kv(k), twins.quantize_kv(v)
        cache = (k, v, k_scales, v_scales)
    got = attend(q, starts, seats, *cache)
    want = twins.attend(q, starts, *(None if part is None else part[seats] for part in cache))
    close(got, want)


@pytest.mark.parametrize(("dtype", "normed", "n"), [("float32", True, 2), ("int8", False, 2), ("int8", True, 48)])
def test_keys_and_values_are_put_in_place(dtype: str, normed: bool, n: int) -> None:
    q, k, v = normal(0, 3, n, 4, 32), normal(1, 3, n, 2, 32), normal(2, 3, n, 2, 32)
    starts, seats = jnp.asarray([5, 0, 64 - n], jnp.int32), jnp.asarray([2, 0, 3], jnp.int32)
    inv_freq = tuple((1.0 / 10000 ** (np.arange(0, 32, 2) / 32)).tolist())
    norms = (1 + normal(3, 32), 1 + normal(4, 32)) if normed else None
    scales = (jnp.zeros((4, 2, 64)),) * 2 if dtype == "int8" else ()
    kv = LayerKV(jnp.zeros((4, 2, 64, 32), dtype), jnp.zeros((4, 2, 64, 32), dtype), *scales)
    positions = starts[:, None] + jnp.arange(n, dtype=jnp.int32)[None]
    a, b = (q, k) if norms is None else (rms_norm(x, norm, 1e-5) for x, norm in zip((q, k), norms, strict=True))
    want = append(kv, rope(b, positions, inv_freq), v, starts, seats)
    caches = tuple(part for part in (kv.k, kv.v, kv.k_scales, kv.v_scales) if part is not None)
    queries, got = place(q, k, v, starts, seats, jnp.asarray(inv_freq, jnp.float32), caches, norms, eps=1e-5)
    close(queries, rope(a, positions, inv_freq))
    for mine, theirs in zip(got, jax.tree.leaves(want), strict=True):
        if mine.dtype == jnp.int8:  # a value halfway between two steps may go either way
            assert jnp.abs(mine.astype(jnp.int32) - theirs.astype(jnp.int32)).max() <= 1
            assert jnp.mean(mine != theirs) < 0.01
        else:
            close(mine, theirs)


@pytest.mark.parametrize(
    ("dtype", "normed", "capacity"), [("float32", True, 384), ("int8", False, 320), ("float32", False, 2240)]
)
def test_one_token_is_placed_and_attends_in_one_launch(
    monkeypatch: pytest.MonkeyPatch, dtype: str, normed: bool, capacity: int
) -> None:
    monkeypatch.setattr(triton, "debug_barrier", lambda: None)  # which the interpreter does not know
    q, k, v = normal(0, 3, 1, 6, 32), normal(1, 3, 1, 2, 32), normal(2, 3, 1, 2, 32)
    starts, seats = jnp.asarray([130, 0, capacity - 1], jnp.int32), jnp.asarray([2, 0, 3], jnp.int32)
    inv_freq = jnp.asarray(1.0 / 10000 ** (np.arange(0, 32, 2) / 32), jnp.float32)
    norms = (1 + normal(3, 32), 1 + normal(4, 32)) if normed else None
    caches: tuple = (normal(5, 4, 2, capacity, 32), normal(6, 4, 2, capacity, 32))
    if dtype == "int8":
        (a, a_scales), (b, b_scales) = map(twins.quantize_kv, caches)
        caches = (a, b, a_scales, b_scales)
    queries, want = place(q, k, v, starts, seats, inv_freq, caches, norms, eps=1e-5)
    arrivals = jnp.zeros((6,), jnp.int32)
    mixed, arrivals, got = attend_one(q, k, v, starts, seats, arrivals, inv_freq, caches, norms, eps=1e-5)
    assert not arrivals.any()
    close(mixed, attend(queries, starts, seats, *want))
    jax.tree.map(close, got, want)


def in_slot(*arrays: jax.Array) -> list[Part]:
    """The arrays one behind the other in a buffer, each from a multiple of 32 values on."""
    sizes = [-(-x.size // 32) * 32 for x in arrays]
    buffer = jnp.concatenate(
        [jnp.pad(x.reshape(-1), (0, size - x.size)) for x, size in zip(arrays, sizes, strict=True)]
    )
    starts = np.cumsum([0, *sizes[:-1]])
    return [Part(buffer, jnp.int32(start), x.shape) for x, start in zip(arrays, starts, strict=True)]


def test_parts_of_a_slot_are_read_where_they_lie() -> None:
    x, y, b, scale = normal(0, 1, 192), normal(1, 1, 64), normal(2, 64, 16), jnp.float32(2)
    maps = normal(3, 64, 192), normal(4, 16, 192)
    slot = in_slot(jnp.zeros(3), *maps, b, scale.reshape(1))
    wide, low = linears(x, [Weight(maps[0]), Weight(slot[2])])
    close(wide, jnp.einsum("ri,oi->ro", x, maps[0]))
    close(low, jnp.einsum("ri,oi->ro", x, maps[1]))
    delta = Delta(0, low, slot[3], Part(slot[4].values, slot[4].start, ()))
    close(add_deltas([y], [[delta]], jnp.full((1, 1), 0.5))[0], y + jnp.einsum("ok,rk->ro", b, low))


def test_deltas_are_selected_by_their_gates() -> None:
    ys = [normal(0, 2, 64), normal(1, 2, 24)]
    gates = jnp.asarray([[0.5, 0.0], [0.0, 0.0]])
    good = [Delta(0, normal(2 + i, 2, 16), normal(4 + i, y.shape[1], 16), jnp.float32(2)) for i, y in enumerate(ys)]
    bad = Delta(1, jnp.full((2, 16), jnp.nan), good[0].b, jnp.float32(1))
    got = add_deltas(ys, [[good[0], bad], [good[1]]], gates)
    for mine, y, delta in zip(got, ys, good, strict=True):
        close(mine[0], y[0] + 0.5 * 2 * jnp.einsum("ok,k->o", delta.b, delta.low[0]))
        assert jnp.array_equal(mine[1], y[1])
