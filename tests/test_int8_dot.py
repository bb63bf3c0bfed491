"""Products with int8 activations: the integer form, its float twin, and what they are worth to exact numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbjax.core.int8_dot import float_dot, int8_dot, int8_linear, round_activations
from mbjax.core.quant import Scheme, dequantize, linear
from mbjax.core.quantize import quantize_weight

# (group of weights, group of activations; 0: whole rows) -> root mean square error over root mean square of the
# product of normal x [32, 256] and w [64, 256], seed 0.
PINNED = {
    (0, 0): 0.0101,
    (32, 32): 0.0078,
    (32, 64): 0.0081,
    (32, 128): 0.0087,
    (32, 0): 0.0092,
    (128, 32): 0.0086,
    (0, 32): 0.0089,
}


def normal(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize(("weights", "activations"), PINNED)
def test_errors_are_what_they_were(weights: int, activations: int) -> None:
    x, w = normal(32, 256, seed=1), normal(64, 256)
    q = dataclasses.replace(quantize_weight(w, Scheme(8, weights)), activations=activations)
    exact = np.asarray(x) @ np.asarray(w).T
    error = np.sqrt(np.square(np.asarray(linear(x, q)) - exact).mean() / np.square(exact).mean())
    assert round(float(error), 4) == PINNED[weights, activations]


@pytest.mark.parametrize("width", [32, 100, 576])
@pytest.mark.parametrize("weights", [0, 32, 128])
@pytest.mark.parametrize("activations", [0, 32, 128])
def test_integer_and_float_form_agree(width: int, weights: int, activations: int) -> None:
    x, q = normal(5, width, seed=2), quantize_weight(normal(7, width), Scheme(8, weights))
    integer = []

    def both(*operands: jax.Array) -> jax.Array:
        integer.append(int8_dot(*operands))
        return float_dot(*operands)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mbjax.core.int8_dot.float_dot", both)
        patch.setattr("jax.lax.platform_dependent", lambda *operands, cpu, default: cpu(*operands))
        floats = int8_linear(x, q.values, q.scales, activations)
    np.testing.assert_allclose(integer[0], floats, rtol=1e-5, atol=1e-5)
    rounded = np.asarray(round_activations(x, activations), np.float64)
    np.testing.assert_allclose(floats, rounded @ np.asarray(dequantize(q), np.float64).T, rtol=1e-4, atol=1e-4)


def test_sums_of_integers_are_exact() -> None:
    x, w = (jnp.full((1, 2**17), 127, jnp.int8) for _ in range(2))  # far beyond what float32 sums hold exactly
    one = jnp.ones((1, 1), jnp.float32)
    assert float(int8_dot(x, one, w, one)[0, 0]) == np.float32(127 * 127 * 2**17)


def test_zero_rows_and_no_rows() -> None:
    q = dataclasses.replace(quantize_weight(jnp.zeros((4, 64)), Scheme(8)), activations=32)
    assert (linear(jnp.zeros((2, 64)), q) == 0).all() and (linear(normal(2, 64), q) == 0).all()
    assert linear(jnp.zeros((0, 64)), q).shape == (0, 4)
