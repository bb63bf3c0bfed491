"""Making quantised weights: what the schemes are worth, to exact numbers; rules; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbjax.core.quant import INT4, INT8, QTensor, Scheme, abstract, dequantize, is_quantized, tile
from mbjax.core.quantize import RULES, Rule, fake_quantize, quantised_linear, quantize, quantize_weight, scheme_of

# Root mean square error of unit normal weights [64, 256], seed 0, after quantisation.
PINNED = {
    Scheme(8, 0): 0.0069,
    Scheme(8, 32): 0.0053,
    Scheme(8, 64): 0.0059,
    Scheme(8, 128): 0.0064,
    Scheme(4, 32): 0.0857,
    Scheme(4, 64): 0.0948,
    Scheme(4, 128): 0.1030,
    Scheme(4, 32, asymmetric=True): 0.0705,
    Scheme(4, 64, asymmetric=True): 0.0825,
    Scheme(4, 128, asymmetric=True): 0.0920,
}


def weights(out=64, width=256, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(out, width)).astype(np.float32))


def same(a: QTensor, b: QTensor):
    return a.shape == b.shape and all(
        (x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("scheme", PINNED, ids=str)
@pytest.mark.parametrize("shape", [(1, 5), (37, 100), (16, 256)])
def test_shapes_are_known_beforehand(scheme, shape):
    for place in (tile, lambda q: q):
        made = jax.eval_shape(lambda w, place=place: place(quantize_weight(w, scheme)), jnp.zeros(shape))
        assert jax.tree.structure(made) == jax.tree.structure(wanted := abstract(shape, scheme, tiled=made.tiled))
        assert [(x.shape, x.dtype) for x in jax.tree.leaves(made)] == [
            (x.shape, x.dtype) for x in jax.tree.leaves(wanted)
        ]


@pytest.mark.parametrize("scheme", PINNED, ids=str)
def test_errors_are_what_they_were(scheme):
    w = weights()
    error = float(jnp.sqrt(jnp.mean(jnp.square(dequantize(quantize_weight(w, scheme)) - w))))
    assert round(error, 4) == PINNED[scheme]


def test_quantising_again_changes_nothing():
    once = dequantize(quantize_weight(weights(), INT8))
    assert (dequantize(quantize_weight(once, INT8)) == once).all()


def test_a_search_is_no_worse_than_the_plain_range():
    w = weights()
    groups = np.asarray(w).reshape(-1, 32)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    d = ((high - low) / 15).astype(np.float16).astype(np.float32)
    plain = np.clip(np.round((groups - low) / d), 0, 15) * d + low.astype(np.float16)
    ours = np.asarray(dequantize(quantize_weight(w, INT4))).reshape(-1, 32)
    assert np.square(ours - groups).sum() < np.square(plain - groups).sum()


def test_gradients_pass_straight_through_to_trained_weights():
    w = weights(8, 32)
    value, grad = jax.value_and_grad(lambda w: jnp.sum(fake_quantize(w, INT4) ** 2))(w)
    assert float(value) == pytest.approx(float(jnp.sum(dequantize(quantize_weight(w, INT4)) ** 2)), rel=1e-5)
    np.testing.assert_allclose(grad, 2 * dequantize(quantize_weight(w, INT4)), rtol=1e-5)


def test_rules_apply_in_order_and_idle_ones_are_reported():
    tree = {"embed": weights(8, 64), "layer": {"q": weights(16, 64), "norm": jnp.ones(64)}}
    rules = (Rule("embed", INT8), Rule("nothing", INT4), Rule("layer", INT4))
    out, idle = quantize(tree, rules)
    assert idle == [rules[1]]
    assert out["embed"].bits == 8 and out["layer"]["q"].bits == 4 and out["layer"]["q"].tiled
    assert not is_quantized(out["layer"]["norm"])
    again, _ = quantize(out, rules)
    assert same(again["embed"], out["embed"])


def test_what_cannot_be_quantised_is_refused_by_name():
    with pytest.raises(ValueError, match=r"\['w'\]"):
        quantize({"w": weights().at[0, 0].set(jnp.nan)}, (Rule("w", INT8),))
    with pytest.raises(ValueError, match="group 48"):
        Scheme(8, 48)
    with pytest.raises(ValueError, match="5 bits"):
        Scheme(5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e9])
@pytest.mark.parametrize("scheme", [INT8, Scheme(8, 0), Scheme(4), INT4], ids=str)
def test_a_value_that_no_scheme_holds_is_named(scheme, value):
    with pytest.raises(ValueError, match=r"\['layer'\]\['w'\]: holds values that are not finite or lie beyond float16"):
        quantize({"layer": {"w": weights().at[3, 7].set(value)}}, (Rule("w", scheme),))


@pytest.mark.parametrize("scheme", PINNED, ids=str)
def test_rows_of_zeros_stay_zeros_and_disturb_no_other(scheme):
    w = weights().at[5].set(0.0)
    out = dequantize(quantize_weight(w, scheme))
    assert (out[5] == 0).all()
    assert (out[6] == dequantize(quantize_weight(weights(), scheme))[6]).all()


@pytest.mark.parametrize("shape", [(0, 64), (4, 0), (64,), (2, 4, 32)])
def test_what_is_no_matrix_is_refused(shape):
    with pytest.raises(ValueError, match="cannot be quantised"):
        quantize_weight(jnp.zeros(shape), INT8)


@pytest.mark.parametrize("group", [-32, 1, 31, 48, 256])
@pytest.mark.parametrize("bits", [8, 4])
def test_odd_groups_are_refused(bits, group):
    with pytest.raises(ValueError, match=f"group {group}"):
        Scheme(bits, group)
    with pytest.raises(ValueError, match="group 0"):
        Scheme(4, 0)
    with pytest.raises(ValueError, match="symmetric"):
        Scheme(8, asymmetric=True)


def test_the_rules_of_a_dtype():
    assert scheme_of(".embed", RULES["int4"]) == scheme_of(".head", RULES["int4"]) == INT8
    assert (
        scheme_of(".layers[3].mlp.up", RULES["int4"]) == INT4 and scheme_of(".layers[3].mlp.up", RULES["int8"]) == INT8
    )
    assert scheme_of(".layers[0].attn.q", (Rule("mlp", INT8),)) is None


@pytest.mark.parametrize("activations", [None, 32])
def test_training_sees_the_rounded_product_and_straight_gradients(activations):
    x, w = weights(6, 64, seed=1).reshape(2, 3, 64), weights(8, 64)
    rounded = dequantize(quantize_weight(w, INT8))
    y, pull = jax.vjp(lambda x, w: quantised_linear(x, w, INT8, activations), x, w)
    np.testing.assert_allclose(y, x @ rounded.T, atol=1e-5 if activations is None else 0.2)
    dx, dw = pull(jnp.ones_like(y))
    np.testing.assert_allclose(dx, jnp.ones_like(y) @ rounded, rtol=1e-4, atol=1e-4)
    plain = jnp.ones((8, 6)) @ x.reshape(6, 64)
    np.testing.assert_allclose(dw, plain, atol=1e-4 if activations is None else 0.1)
    assert dx.dtype == dw.dtype == jnp.float32


def test_training_through_quantised_products_fits_what_rounding_allows():
    """A regression onto int4 weights: trained with the rounding in the loop, the rounded weights come near."""
    x, goal = weights(128, 32, seed=2), dequantize(quantize_weight(weights(4, 32, seed=3), INT4))
    y = x @ goal.T

    @jax.jit
    def step(w):
        return w - 0.05 * jax.grad(lambda w: jnp.mean((quantised_linear(x, w, INT4) - y) ** 2))(w)

    w = weights(4, 32, seed=4)
    start = float(jnp.mean((quantised_linear(x, w, INT4) - y) ** 2))
    for _ in range(300):
        w = step(w)
    assert float(jnp.mean((quantised_linear(x, w, INT4) - y) ** 2)) < 0.01 * start
