"""The compiled kernels against their twins, on ragged shapes, and the promise that rows do not see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbjax.kernels import native, twins
from mbjax.kernels.attention import attend
from mbjax.kernels.bundle import Quantized
from mbjax.kernels.linear import linear
from mbjax.kernels.tiles import pack4, tile_scales, tile_values, unpack4, untile_scales, untile_values

needs_native = pytest.mark.skipif(not native.available(), reason="the CPU kernels are not built")


@pytest.fixture(scope="module", autouse=True)
def best_isa_again():
    yield
    native.select_isa()


def isas():
    """Every instruction set that this machine can run, one after the other, switched on."""
    for name in ("avx512vnni", "avx2", "neon", "portable"):
        if native.select_isa(name):
            yield name


twin_linear = jax.jit(twins.linear, static_argnums=(4, 7))
twin_attend = jax.jit(twins.attend)


def weight(rng, out, width, bits, group, asymmetric=False):
    """A random tiled weight; scales of both signs, as Q4_0 has them."""
    width = -(-width // group) * group
    if bits == 8:
        values = jnp.asarray(rng.integers(-128, 128, (out, width), dtype=np.int8))
    else:
        values = pack4(jnp.asarray(rng.integers(0, 16, (out, width), dtype=np.uint8)))
    scales = jnp.asarray(rng.normal(0, 0.02, (out, width // group)).astype(np.float16))
    mins = jnp.asarray(rng.normal(0, 0.1, scales.shape).astype(np.float16)) if asymmetric else None
    return Quantized(tile_values(values), tile_scales(scales), None if mins is None else tile_scales(mins))


def normal(rng, *shape):
    return jnp.asarray(rng.normal(size=shape).astype(np.float32))


def close(a, b, tolerance=2e-6):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    assert a.shape == b.shape
    np.testing.assert_array_less(np.abs(a - b).max(), tolerance * np.abs(b).max() + 1e-12)


@pytest.mark.parametrize(("out", "width"), [(1, 32), (16, 64), (37, 96)])
def test_tiles_and_packing_are_undone(out, width):
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.integers(0, 16, (out, width), dtype=np.uint8))
    assert (unpack4(pack4(q)) == q).all()
    assert (untile_values(tile_values(pack4(q)), out) == pack4(q)).all()
    scales = normal(rng, out, width // 32)
    assert (untile_scales(tile_scales(scales), out) == scales).all()


@needs_native
@pytest.mark.parametrize(
    ("bits", "group", "asymmetric"), [(8, 32, False), (8, 192, False), (4, 32, True), (4, 64, False), (4, 128, True)]
)
@pytest.mark.parametrize(("rows", "width", "out"), [(1, 100, 16), (3, 192, 37), (16, 64, 5), (45, 160, 64)])
def test_linear_equals_its_twin(bits, group, asymmetric, rows, width, out):
    rng = np.random.default_rng(1)
    w, x = weight(rng, out, width, bits, group, asymmetric), normal(rng, rows, width) * 3
    norm, bias = normal(rng, width), normal(rng, out)
    plain, with_norm = twin_linear(x, *w, out), twin_linear(x, *w, out, norm, bias, 1e-5)
    for _ in isas():
        close(linear(x, *w, out), plain)
        # after a norm a value may fall on the other side of a rounding border: one step of int8, not of float32
        close(linear(x, *w, out, norm, bias, 1e-5), with_norm, 5e-3)


@needs_native
@pytest.mark.parametrize("bits", [8, 4])
def test_a_row_does_not_see_its_neighbours(bits):
    rng = np.random.default_rng(2)
    w, x = weight(rng, 40, 96, bits, 32, bits == 4), normal(rng, 33, 96)
    for _ in isas():
        alone = np.concatenate([linear(x[i : i + 1], *w, 40) for i in range(33)])
        for rows in (2, 3, 7, 16, 33):
            assert (np.asarray(linear(x[:rows], *w, 40)) == alone[:rows]).all()


@needs_native
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays_visible(bad):
    rng = np.random.default_rng(3)
    w, x = weight(rng, 20, 64, 8, 32), normal(rng, 2, 64).at[1, 5].set(bad)
    scales = w.scales.at[0, 0, 3].set(bad)
    for _ in isas():
        y = np.asarray(linear(x, *w, 20))
        assert np.isfinite(y[0]).all()
        assert not np.isfinite(y[1]).any()
        y = np.asarray(linear(x[:1], w.values, scales, None, 20))[0]
        assert not np.isfinite(y[3])
        assert np.isfinite(np.delete(y, 3)).all()


@needs_native
def test_zero_rows_and_zero_activations():
    w = weight(np.random.default_rng(4), 20, 64, 4, 32)
    assert linear(jnp.zeros((0, 64)), *w, 20).shape == (0, 20)
    for _ in isas():
        assert (linear(jnp.zeros((2, 64)), *w, 20) == 0).all()


@needs_native
def test_a_weight_that_does_not_fit_is_refused():
    w = weight(np.random.default_rng(5), 20, 64, 8, 32)
    with pytest.raises(Exception, match="narrower"):
        jax.block_until_ready(linear(jnp.zeros((1, 100)), *w, 20))
    with pytest.raises(Exception, match="tiles"):
        jax.block_until_ready(linear(jnp.zeros((1, 64)), *w, 40))


def cache(rng, lanes, kv_heads, positions, width, dtype):
    k, v = normal(rng, lanes, kv_heads, positions, width), normal(rng, lanes, kv_heads, positions, width)
    if dtype == "int8":
        (k, ks), (v, vs) = twins.quantize_kv(k), twins.quantize_kv(v)
        return (k, v, ks, vs)
    return (k.astype(dtype), v.astype(dtype))


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "width", "lengths"),
    [
        (1, 9, 3, 64, (0, 299)),
        (5, 4, 1, 32, (17, 256)),
        (16, 14, 2, 64, (64, 0)),
        (37, 6, 2, 96, (3, 200)),
        (33, 4, 4, 128, (0, 0)),
    ],
)
def test_attention_equals_its_twin(dtype, tokens, heads, kv_heads, width, lengths):
    rng = np.random.default_rng(6)
    kv = cache(rng, 2, kv_heads, 304, width, dtype)
    beyond = max(lengths) + tokens
    if dtype == "float32":  # what is not valid is not read
        kv = tuple(x.at[:, :, beyond:].set(np.nan) for x in kv)
    q, at = normal(rng, 2, tokens, heads, width) * 2, jnp.asarray(lengths, jnp.int32)
    want = twin_attend(q, at, *kv)
    for _ in isas():
        close(attend(q, at, *kv), want, 5e-6)


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_attention_of_a_token_does_not_depend_on_how_many_there_are(dtype):
    rng = np.random.default_rng(7)
    kv, q = cache(rng, 1, 2, 600, 64, dtype), normal(rng, 1, 16, 6, 64)
    for _ in isas():
        together = np.asarray(attend(q, jnp.asarray([505], jnp.int32), *kv))
        for t in (0, 6, 7, 15):
            one = attend(q[:, t : t + 1], jnp.asarray([505 + t], jnp.int32), *kv)
            assert (np.asarray(one)[:, 0] == together[:, t]).all()
