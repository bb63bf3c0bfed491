"""Making quantised weights: one weight by a scheme, a whole tree by ordered rules over its parameter paths."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mbjax.core.int8_dot import round_activations
from mbjax.core.quant import INT4, INT8, QTensor, Scheme, dequantize, is_quantized, linear, tile
from mbjax.kernels import tiles

_FEWEST_STEPS, _RANGES = 13.5, 7  # 4-bit ranges that are tried: a group's own in 13.5, 14.5 ... 19.5 steps


@partial(jax.jit, static_argnums=1)
def quantize_weight(w: jax.Array, scheme: Scheme) -> QTensor:
    """A float weight [out, in] to a plain QTensor. Values are rounded against the float16 scales as stored.

    Raises ValueError for another number of axes and for an empty one. Values that are not finite, or too large for
    float16, come out as such scales: `quantize` looks for them.
    """
    if w.ndim != 2 or not w.size:
        raise ValueError(f"an array of shape {w.shape} cannot be quantised: a weight has outputs and inputs")
    out, width = w.shape
    group = scheme.group or -(-width // tiles.BLOCK) * tiles.BLOCK
    padded = jnp.pad(w.astype(jnp.float32), ((0, 0), (0, -width % group)))
    groups = padded.reshape(out, -1, group)
    q, scales, mins = _asymmetric4(groups) if scheme.asymmetric else _symmetric(groups, scheme.bits)
    q = q.reshape(out, -1)
    values = tiles.pack4(q) if scheme.bits == 4 else q.astype(jnp.int8)
    return QTensor(values, scales, mins, (out, width))


def _symmetric(groups: jax.Array, bits: int) -> tuple[jax.Array, jax.Array, None]:
    """8 bits: the largest value becomes 127. 4 bits: the value furthest from zero becomes -8, as in GGUF's Q4_0."""
    if bits == 8:
        scale, low, high, zero = jnp.abs(groups).max(-1) / 127, -127.0, 127.0, 0.0
    else:
        top, bottom = groups.max(-1), groups.min(-1)
        scale, low, high, zero = jnp.where(top > -bottom, top, bottom) / -8, 0.0, 15.0, 8.0
    scale = scale.astype(jnp.float16)
    q = jnp.round(groups * _inverse(scale)[..., None]) + zero
    return jnp.clip(q, low, high), scale, None


def _asymmetric4(groups: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scale and minimum of each group by a search for the least squared error.

    From the whole range, as Q4_1 takes it, and from narrower and wider ones: values rounded there are fitted by least
    squares, rounded anew and fitted again, as in llama.cpp's `make_qkx2_quants` but without weights.
    """
    low, high, size, total = groups.min(-1), groups.max(-1), groups.shape[-1], groups.sum(-1)

    def rounded(scale: jax.Array, start: jax.Array) -> jax.Array:
        return jnp.clip(jnp.round((groups - start.astype(jnp.float32)[..., None]) * _inverse(scale)[..., None]), 0, 15)

    def stored(scale: jax.Array, start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        scale, start = scale.astype(jnp.float16), start.astype(jnp.float16)
        back = rounded(scale, start) * scale.astype(jnp.float32)[..., None] + start.astype(jnp.float32)[..., None]
        return jnp.square(back - groups).sum(-1), scale, start

    def fitted(q: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, second, mixed = q.sum(-1), jnp.square(q).sum(-1), (q * groups).sum(-1)
        by = size * second - jnp.square(first)
        scale = jnp.where(by > 0, (size * mixed - first * total) / jnp.where(by > 0, by, 1.0), 0.0)
        return scale, (total - scale * first) / size

    def tried(i: jax.Array, best: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        scale = (high - low) / (_FEWEST_STEPS + i)
        found = scale, (low + high) / 2 - 7.5 * scale
        for _ in range(2):
            error, *found = stored(*fitted(rounded(*found)))
            best = tuple(jnp.where(error < best[0], new, old) for new, old in zip((error, *found), best, strict=True))
        return best

    _, scale, start = jax.lax.fori_loop(0, _RANGES, tried, stored((high - low) / 15, low))
    return rounded(scale, start), scale, start


def _inverse(scale: jax.Array) -> jax.Array:
    wide = scale.astype(jnp.float32)
    return jnp.where(wide == 0, 0.0, 1 / jnp.where(wide == 0, 1.0, wide))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def quantised_linear(x: jax.Array, w: jax.Array, scheme: Scheme, activations: int | None = None) -> jax.Array:
    """x [..., in] times a float weight [out, in] as it will be once both are quantised: for training with it.

    `activations` as in `QTensor`. Gradients are those of the product of the rounded values and pass the rounding
    straight through (Bengio et al. 2013).
    """
    return linear(x, dataclasses.replace(quantize_weight(w, scheme), activations=activations))


def _quantised_forward(
    x: jax.Array, w: jax.Array, scheme: Scheme, activations: int | None
) -> tuple[jax.Array, tuple[jax.Array, QTensor, jax.Array]]:
    q = dataclasses.replace(quantize_weight(w, scheme), activations=activations)
    return linear(x, q), (x, q, jnp.zeros((), w.dtype))


def _quantised_backward(
    scheme: Scheme, activations: int | None, kept: tuple[jax.Array, QTensor, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, q, like = kept
    dx = jnp.einsum("...o,oi->...i", g, dequantize(q).astype(g.dtype))
    rows = x.reshape(-1, x.shape[-1])
    if activations is not None:
        rows = round_activations(rows, activations)
    dw = jnp.einsum("ro,ri->oi", g.reshape(-1, g.shape[-1]), rows)
    return dx.astype(x.dtype), dw.astype(like.dtype)


quantised_linear.defvjp(_quantised_forward, _quantised_backward)


def fake_quantize(w: jax.Array, scheme: Scheme) -> jax.Array:
    """The weight as it will be after quantisation, with gradients as if it were not: for quantisation-aware training."""
    rounded = dequantize(quantize_weight(jax.lax.stop_gradient(w), scheme)).astype(w.dtype)
    return w + jax.lax.stop_gradient(rounded - w)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Parameters whose path contains a match of the regular expression `path` take `scheme`; None leaves them."""

    path: str
    scheme: Scheme | None


# What `--dtype int8` and `--dtype int4` mean: embedding and head keep 8 bits, as GGUF files have it.
RULES = {"int8": (Rule(".", INT8),), "int4": (Rule(r"\.(embed|head)$", INT8), Rule(".", INT4))}


def scheme_of(path: str, rules: Sequence[Rule]) -> Scheme | None:
    """The scheme that the first matching rule gives the weight at `path`; None where it stays as it is."""
    return next((rule.scheme for rule in rules if re.search(rule.path, path)), None)


def quantize(tree: Any, rules: Sequence[Rule], place: Callable[[QTensor], Any] = tile) -> tuple[Any, list[Rule]]:
    """The tree with its weights quantised by the first rule that matches each path; and the rules that matched nothing.

    Only matrices are quantised: norms and biases stay as they are, and so does what is quantised already. Paths are
    those of `jax.tree_util.keystr`, such as `.layers[0].attn.q`. Raises ValueError naming a weight that is not finite.
    """
    unused = set(range(len(rules)))

    def one(path: Any, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        for i, rule in enumerate(rules):
            if re.search(rule.path, name):
                unused.discard(i)
                return _quantize_leaf(name, leaf, rule.scheme, place)
        return leaf

    out = jax.tree.map_with_path(one, tree, is_leaf=is_quantized)
    return out, [rules[i] for i in sorted(unused)]


def _quantize_leaf(name: str, leaf: Any, scheme: Scheme | None, place: Callable[[QTensor], Any]) -> Any:
    if scheme is None or is_quantized(leaf) or leaf.ndim != 2:
        return leaf
    q = quantize_weight(leaf, scheme)
    finite = jnp.isfinite(leaf).all() & jnp.isfinite(q.scales).all()
    if not finite:
        raise ValueError(f"{name}: holds values that are not finite or lie beyond float16's range")
    return place(q)
