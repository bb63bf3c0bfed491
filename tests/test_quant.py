"""Quantised weights: what is stored, what it is worth, what is refused. Errors are pinned to exact numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbjax.core.gguf_blocks import from_blocks
from mbjax.core.quant import (
    INT4,
    INT8,
    QTensor,
    Rule,
    Scheme,
    dequantize,
    fake_quantize,
    is_quantized,
    linear,
    quantize,
    quantize_weight,
    rows,
    take_rows,
    tile,
    untile,
)

# Root mean square error of unit normal weights [64, 256], seed 0, after quantisation.
PINNED = {
    Scheme(8, 0): 0.0069,
    Scheme(8, 32): 0.0053,
    Scheme(8, 128): 0.0064,
    Scheme(4, 32): 0.0857,
    Scheme(4, 32, asymmetric=True): 0.0718,
    Scheme(4, 128, asymmetric=True): 0.0928,
}


def weights(out=64, width=256, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(out, width)).astype(np.float32))


def same(a: QTensor, b: QTensor):
    return a.shape == b.shape and all(
        (x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize("scheme", PINNED, ids=str)
def test_errors_are_what_they_were(scheme):
    w = weights()
    error = float(jnp.sqrt(jnp.mean(jnp.square(dequantize(quantize_weight(w, scheme)) - w))))
    assert round(error, 4) == PINNED[scheme]


@pytest.mark.parametrize("scheme", [Scheme(8, 0), Scheme(8, 64), Scheme(4, 128), INT4], ids=str)
@pytest.mark.parametrize("shape", [(1, 5), (37, 100), (16, 64)])
def test_layouts_are_two_forms_of_the_same(scheme, shape):
    q = quantize_weight(weights(*shape), scheme)
    assert dequantize(q).shape == shape
    assert same(untile(tile(q)), q)
    assert (dequantize(tile(q)) == dequantize(q)).all()
    index = jnp.asarray([[0, shape[0] - 1]], jnp.int32)
    for form in (q, tile(q)):
        assert (rows(form, index) == dequantize(q)[index]).all()


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


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_gguf_blocks_are_carried_over_exactly(kind):
    from gguf import GGMLQuantizationType, quants

    kinds = GGMLQuantizationType[kind]
    data = quants.quantize(np.asarray(weights(8, 96)), kinds)
    q = from_blocks(kind, data.reshape(-1).view(np.uint8), (8, 96))
    assert (np.asarray(dequantize(q)) == quants.dequantize(data, kinds)).all()
    assert (dequantize(take_rows(q, jnp.asarray([3, 1]))) == dequantize(q)[jnp.asarray([3, 1])]).all()


def test_gguf_blocks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="Q6_K"):
        from_blocks("Q6_K", np.zeros(34, np.uint8), (1, 32))
    with pytest.raises(ValueError, match="33 bytes"):
        from_blocks("Q8_0", np.zeros(33, np.uint8), (1, 32))


@pytest.mark.parametrize("place", [tile, untile])
def test_products_and_their_gradients(place):
    w = weights(24, 64)
    q = place(quantize_weight(w, INT8))
    x = weights(3, 64, seed=1).reshape(1, 3, 64)
    y, pull = jax.vjp(lambda x: linear(x, q), x)
    np.testing.assert_allclose(y, x @ dequantize(q).T, atol=0.15)
    np.testing.assert_allclose(pull(jnp.ones_like(y))[0], jnp.ones_like(y) @ dequantize(q), atol=1e-4)


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
