"""Quantised weights and integer products against Qwix (github.com/google/qwix), AQT's successor."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbjax.core.int8_dot import int8_dot
from mbjax.core.quant import Scheme, dequantize, linear
from mbjax.core.quantize import quantize_weight

qwix = pytest.importorskip("qwix", reason="needs qwix")

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("default")]  # what Qwix warns of is not ours

R, O, K = 16, 96, 512


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def in_qwix(x: jax.Array, group: int, kind: str = "int8", method: str = "absmax"):
    axes = {"tiled_axes": {1: group}} if group else {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return qwix.quantize(x, kind, channelwise_axes=[0], calibration_method=method, **axes)


def relative(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.sqrt(jnp.square(a - b).mean() / jnp.square(b).mean()))


@pytest.mark.parametrize("group", [0, 32, 64, 128])
def test_int8_weights_are_qwixs_but_for_scales(group: int) -> None:
    """Qwix lets the largest value be 127.5 and cuts it off; ours is 127, and scales are float16."""
    w = normal(O, K)
    ours, theirs = quantize_weight(w, Scheme(8, group)), in_qwix(w, group)
    assert np.abs(np.asarray(ours.values, np.int32) - np.asarray(theirs.qvalue, np.int32)).max() <= 1
    np.testing.assert_allclose(np.asarray(ours.scales, np.float32) * (127 / 127.5), theirs.scale, rtol=2**-10)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        other = relative(qwix.dequantize(theirs), w)
    assert relative(dequantize(ours), w) <= 1.01 * other


@pytest.mark.parametrize(("group", "asymmetric"), [(32, True), (64, True), (128, True), (32, False), (128, False)])
def test_int4_weights_err_no_more_than_qwixs(group: int, asymmetric: bool) -> None:
    w = normal(O, K)
    ours = dequantize(quantize_weight(w, Scheme(4, group, asymmetric)))
    theirs = in_qwix(w, group, "int4", "minmax" if asymmetric else "absmax")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        other = relative(qwix.dequantize(theirs), w)
    assert relative(ours, w) <= other


@pytest.mark.parametrize(("group", "activations"), [(0, 0), (32, 32), (128, 128), (128, 0)])
def test_products_of_int8_with_int8_err_no_more_than_qwixs(group: int, activations: int) -> None:
    x, w = normal(R, K, seed=1), normal(O, K)
    ours = linear(x, dataclasses.replace(quantize_weight(w, Scheme(8, group)), activations=activations))
    dims = (((1,), (1,)), ((), ()))
    a, b = in_qwix(x, activations), in_qwix(w, group)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = qwix.dot_general(a, b, dims)
    exact = jnp.dot(x, w.T, precision=jax.lax.Precision.HIGHEST)
    assert relative(ours, exact) <= 1.02 * relative(theirs, exact)
    same = int8_dot(a.qvalue, a.scale, b.qvalue, b.scale)
    assert relative(same, theirs) < 1e-6  # the same integers and scales: the same product
