"""Quantised weights: values and scales as one pytree, made by rules over parameter paths.

Weights are [out, in]; groups run along `in`. Axis letters: K the input width padded to whole groups, R rows.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mbjax.kernels import tiles, twins
from mbjax.kernels.layers import Quantized
from mbjax.kernels.linear import linear as _tiled_linear

GROUPS = (32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """How a weight is quantised.

    bits 8: int8, one scale per `group` inputs, or per output channel where group is 0. bits 4: two to a byte;
    asymmetric with a scale and a minimum per group, else with a scale and the zero at 8. Scales are float16.
    """

    bits: int
    group: int = 32
    asymmetric: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise ValueError(f"{self.bits} bits; weights are quantised to 4 or 8")
        if self.group not in ((0, *GROUPS) if self.bits == 8 else GROUPS):
            raise ValueError(f"group {self.group} at {self.bits} bits; it must be 32, 64 or 128 (or 0 at 8 bits)")
        if self.asymmetric and self.bits == 8:
            raise ValueError("8-bit weights are symmetric")


INT8 = Scheme(8)
INT4 = Scheme(4, asymmetric=True)


@flax.struct.dataclass
class QTensor:
    """A quantised weight [out, in].

    Plain (files, accelerators): values int8 [out, K] or uint8 [out, K / 2], scales float16 [out, groups], mins the
    same or None. Tiled (CPU kernels): see `kernels.tiles`. K is a multiple of the group and of 32, the padding zero;
    w = scale * q + min, or scale * q (8 bits), or scale * (q - 8) (4 bits without mins). `shape` is that of w.
    """

    values: jax.Array
    scales: jax.Array
    mins: jax.Array | None
    shape: tuple[int, int] = flax.struct.field(pytree_node=False)
    tiled: bool = flax.struct.field(pytree_node=False, default=False)

    @property
    def bits(self) -> int:
        return 4 if self.values.dtype == jnp.uint8 else 8

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> Any:
        """What products with it come out as."""
        return jnp.dtype(jnp.float32)

    @property
    def nbytes(self) -> int:
        return sum(x.size * x.dtype.itemsize for x in (self.values, self.scales, self.mins) if x is not None)

    def arrays(self) -> Quantized:
        """The same for the kernels; only where tiled."""
        return Quantized(self.values, self.scales, self.mins)


def is_quantized(x: Any) -> bool:
    return isinstance(x, QTensor)


def abstract(shape: tuple[int, int], scheme: Scheme, *, tiled: bool = True) -> QTensor:
    """Shapes and dtypes of a weight [out, in] after quantisation."""
    out, width = shape
    unit = scheme.group or tiles.BLOCK
    padded = -(-width // unit) * unit
    n_bytes, groups = padded * scheme.bits // 8, padded // scheme.group if scheme.group else 1
    n_tiles = -(-out // tiles.LANES)
    values = (n_tiles, n_bytes // 4, tiles.LANES, 4) if tiled else (out, n_bytes)
    scale = jax.ShapeDtypeStruct((n_tiles, groups, tiles.LANES) if tiled else (out, groups), jnp.float16)
    value = jax.ShapeDtypeStruct(values, jnp.int8 if scheme.bits == 8 else jnp.uint8)
    return QTensor(value, scale, scale if scheme.asymmetric else None, shape, tiled)  # pyright: ignore[reportArgumentType]


@partial(jax.jit, static_argnums=1)
def quantize_weight(w: jax.Array, scheme: Scheme) -> QTensor:
    """A float weight [out, in] to a plain QTensor. Values are rounded against the float16 scales as stored."""
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
    """Scale and minimum of each group by a search over shrunken ranges for the least squared error.

    Q4_1 takes the range from smallest to largest value; giving up its ends a little is often better.
    """
    low, high = groups.min(-1), groups.max(-1)

    def fit(by: tuple[float, float]) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        span = high - low
        start = (low + by[0] * span).astype(jnp.float16)
        scale = ((high - by[1] * span - start.astype(jnp.float32)) / 15).astype(jnp.float16)
        first = start.astype(jnp.float32)[..., None]
        q = jnp.clip(jnp.round((groups - first) * _inverse(scale)[..., None]), 0, 15)
        error = jnp.square(q * scale.astype(jnp.float32)[..., None] + first - groups).sum(-1)
        return error, q, scale, start

    best = fit((0.0, 0.0))
    for by in ((0.03, 0.0), (0.0, 0.03), (0.03, 0.03), (0.06, 0.06), (-0.02, -0.02)):
        other = fit(by)
        better = other[0] < best[0]
        best = (
            jnp.where(better, other[0], best[0]),
            jnp.where(better[..., None], other[1], best[1]),
            jnp.where(better, other[2], best[2]),
            jnp.where(better, other[3], best[3]),
        )
    return best[1], best[2], best[3]


def _inverse(scale: jax.Array) -> jax.Array:
    wide = scale.astype(jnp.float32)
    return jnp.where(wide == 0, 0.0, 1 / jnp.where(wide == 0, 1.0, wide))


def dequantize(q: QTensor) -> jax.Array:
    """float32 [out, in]."""
    q = untile(q)
    return twins.dequantize(q.values, q.scales, q.mins)[:, : q.shape[1]]


def tile(q: QTensor) -> QTensor:
    """The layout of the CPU kernels."""
    if q.tiled:
        return q
    mins = None if q.mins is None else tiles.tile_scales(q.mins)
    return dataclasses.replace(
        q, values=tiles.tile_values(q.values), scales=tiles.tile_scales(q.scales), mins=mins, tiled=True
    )


def untile(q: QTensor) -> QTensor:
    """The plain layout."""
    if not q.tiled:
        return q
    out = q.shape[0]
    mins = None if q.mins is None else tiles.untile_scales(q.mins, out)
    values, scales = tiles.untile_values(q.values, out), tiles.untile_scales(q.scales, out)
    return dataclasses.replace(q, values=values, scales=scales, mins=mins, tiled=False)


def rows(q: QTensor, index: jax.Array) -> jax.Array:
    """Rows of the weight, the lookup of an embedding: index int32 [...] -> float32 [..., in]."""
    at = index.reshape(-1)
    if q.tiled:
        tile_at, lane = at // tiles.LANES, at % tiles.LANES
        values = q.values[tile_at, :, lane].reshape(at.shape[0], -1)
        scales = q.scales[tile_at, :, lane]
        mins = None if q.mins is None else q.mins[tile_at, :, lane]
    else:
        values, scales = q.values[at], q.scales[at]
        mins = None if q.mins is None else q.mins[at]
    return twins.dequantize(values, scales, mins)[:, : q.shape[1]].reshape(*index.shape, q.shape[1])


def take_rows(q: QTensor, index: jax.Array) -> QTensor:
    """A plain QTensor with the outputs in another order: how GGUF's interleaved q and k become half-split ones."""
    mins = None if q.mins is None else q.mins[index]
    return dataclasses.replace(
        q, values=q.values[index], scales=q.scales[index], mins=mins, shape=(index.shape[0], q.shape[1])
    )


@jax.custom_vjp
def linear(x: jax.Array, w: QTensor) -> jax.Array:
    """x [..., in] times w, in x's dtype.

    Tiled: activations are rounded to int8 in groups of 32 and the CPU kernels run. Plain: weight-only, through XLA, in
    x's dtype. Gradients pass the rounding straight through to x; the weight has none.
    """
    flat = x.reshape(-1, x.shape[-1])
    if w.tiled:
        y = _tiled_linear(flat.astype(jnp.float32), w.values, w.scales, w.mins, w.shape[0])
    else:
        wide = dequantize(w).astype(x.dtype)
        y = jnp.einsum("ri,oi->ro", flat, wide, preferred_element_type=jnp.float32)
    return y.astype(x.dtype).reshape(*x.shape[:-1], w.shape[0])


def _linear_forward(x: jax.Array, w: QTensor) -> tuple[jax.Array, QTensor]:
    return linear(x, w), w


def _linear_backward(w: QTensor, g: jax.Array) -> tuple[jax.Array, Any]:
    dx = jnp.einsum("...o,oi->...i", g, dequantize(w).astype(g.dtype))
    return dx, jax.tree.map(_no_gradient, w)


def _no_gradient(x: jax.Array) -> Any:
    """The zero cotangent of an array; integers have the empty type for it."""
    return jnp.zeros_like(x) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.zeros(x.shape, jax.dtypes.float0)


linear.defvjp(_linear_forward, _linear_backward)


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


def quantize(tree: Any, rules: Sequence[Rule], place: Callable[[QTensor], QTensor] = tile) -> tuple[Any, list[Rule]]:
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


def _quantize_leaf(name: str, leaf: Any, scheme: Scheme | None, place: Callable[[QTensor], QTensor]) -> Any:
    if scheme is None or is_quantized(leaf) or leaf.ndim != 2:
        return leaf
    q = quantize_weight(leaf, scheme)
    finite = jnp.isfinite(leaf).all() & jnp.isfinite(q.scales).all()
    if not finite:
        raise ValueError(f"{name}: holds values that are not finite or lie beyond float16's range")
    return place(q)
