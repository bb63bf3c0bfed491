"""Quantised weights: their layouts, a GGUF's own blocks, products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbjax.core.gguf_blocks import from_blocks
from mbjax.core.quant import (
    INT4,
    INT8,
    QTensor,
    Scheme,
    dequantize,
    linear,
    rows,
    take_rows,
    tile,
    untile,
)
from mbjax.core.quantize import quantize_weight


def weights(out=64, width=256, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(out, width)).astype(np.float32))


def same(a: QTensor, b: QTensor):
    return a.shape == b.shape and all(
        (x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


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
