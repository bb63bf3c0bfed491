"""Quantised weights: values and scales as one pytree, and products with them. `core.quantize` makes them.

Weights are [out, in]; groups run along `in`. Axis letters: K the input width padded to whole groups, R rows.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mbjax.core.int8_dot import int8_linear
from mbjax.kernels import tiles, twins
from mbjax.kernels.bundle import Quantized
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

    `activations`, for plain 8-bit weights: products round x to int8 in groups of so many inputs, 0 for whole rows;
    None: x as it is. Tiled weights always round it in groups of 32. `compute` is the dtype of what products come out
    as: float32 on the CPU, bfloat16 on accelerators.
    """

    values: jax.Array
    scales: jax.Array
    mins: jax.Array | None
    shape: tuple[int, int] = flax.struct.field(pytree_node=False)
    tiled: bool = flax.struct.field(pytree_node=False, default=False)
    activations: int | None = flax.struct.field(pytree_node=False, default=None)
    compute: str = flax.struct.field(pytree_node=False, default="float32")

    @property
    def bits(self) -> int:
        return 4 if self.values.dtype == jnp.uint8 else 8

    @property
    def ndim(self) -> int:
        return 2

    @property
    def dtype(self) -> Any:
        """What products with it come out as."""
        return jnp.dtype(self.compute)

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


def for_accelerator(q: QTensor) -> QTensor:
    """The form in which accelerators keep it: plain, weight-only, in bfloat16."""
    return dataclasses.replace(untile(q), compute="bfloat16")


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

    Tiled: activations are rounded to int8 in groups of 32 and the CPU kernels run. Plain, through XLA: with int8
    activations if the weight asks for them, else weight-only in x's dtype. Gradients pass the rounding straight through
    to x; the weight has none.
    """
    flat = x.reshape(-1, x.shape[-1])
    if w.tiled:
        y = _tiled_linear(flat.astype(jnp.float32), w.values, w.scales, w.mins, w.shape[0])
    elif w.activations is not None and w.bits == 8:
        y = int8_linear(flat, w.values, w.scales, w.activations)
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
