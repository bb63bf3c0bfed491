"""Whole decoder layers over a cache in one call: one start of the threads for all of a model's layers.

Letters: L layers, B lanes, T tokens, S cached positions, D model width, H query heads, K key/value heads, E head
width, F feed-forward width, P packs.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.kernels import native
from mbjax.kernels.attention import HEAD_DIMS, attention_bytes
from mbjax.kernels.bundle import LayerPlace
from mbjax.kernels.linear import activation_bytes, aligned

MOST_PACKS = 8


class Step(NamedTuple):
    """What the new tokens of a call are."""

    h: jax.Array  # float32 [B, T, D]
    lengths: jax.Array  # int32 [B], positions before the T new ones
    seats: jax.Array  # int32 [B], the lane of the cache that each lane is; no two the same
    cos: jax.Array  # float32 [B, T, E / 2], of their rotary angles
    sin: jax.Array
    gates: jax.Array  # float32 [B, T, P]


class DeltaPlace(NamedTuple):
    """Where a map's delta lies in a slot: offsets in floats of a [rank, in], b [out, rank] and its scale."""

    a: int
    b: int
    scale: int
    rank: int  # 0 where the map has none


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is static of a call: where the weights lie, and the sizes that no array tells."""

    places: tuple[LayerPlace, ...]  # of the layers to run, one after the other
    first: int  # the first one's place in the cache
    heads: int
    ffn: int
    eps: float
    deltas: tuple[tuple[DeltaPlace, ...], ...] = ()  # per layer, in the order of MAPS; the same for every pack

    def rank(self) -> int:
        return max((place.rank for layer in self.deltas for place in layer), default=0)


def compiled_for(head_dim: int, n_packs: int) -> bool:
    """Whether there is a kernel for such layers."""
    return head_dim in HEAD_DIMS and n_packs <= MOST_PACKS and native.available()


def decoder_layers(
    step: Step, weights: jax.Array, kv: jax.Array, kv_scales: jax.Array, slots: tuple[jax.Array, ...], shape: Shape
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The tokens through the layers; those of lane b stand at positions lengths[b] onwards.

    weights: the bytes of a bundle (or a slot's floats); kv [L, 2, N, K, S, E], float32, bfloat16 or int8 with scales
    float32 [L, 2, N, K, S], else [0]; slots: per pack the float32 array that its deltas lie in.
    Returns the new h and the cache with the T positions written. Donate the cache: it is then updated in place.
    The caller keeps lengths + T <= S. For up to 16 tokens a row's bits do not depend on how many rows there are.
    """
    if step.h.size == 0:
        return step.h, kv, kv_scales
    scratch = scratch_bytes(step.h.shape, kv.shape, shape, len(slots))
    results = (
        jax.ShapeDtypeStruct(step.h.shape, jnp.float32),
        jax.ShapeDtypeStruct((scratch,), jnp.uint8),
        jax.ShapeDtypeStruct(kv.shape, kv.dtype),
        jax.ShapeDtypeStruct(kv_scales.shape, kv_scales.dtype),
    )
    call = jax.ffi.ffi_call("mbjax_layers", results, input_output_aliases={6: 2, 7: 3}, vmap_method="sequential")
    h, _, kv, kv_scales = call(
        *step[:5],
        weights,
        kv,
        kv_scales,
        step.gates,
        *slots,
        layout=np.asarray([x for place in shape.places for x in place.numbers()], np.int64),
        low_layout=np.asarray([x for layer in shape.deltas for place in layer for x in place], np.int64),
        first=np.int64(shape.first),
        heads=np.int64(shape.heads),
        ffn=np.int64(shape.ffn),
        eps=np.float32(shape.eps),
    )
    return h, kv, kv_scales


def zeros(shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Zeros for a stacked cache, on the CPU in huge pages: with small ones reading them takes half as long again."""
    if not native.available() or 0 in shape:
        return jnp.zeros(shape, dtype)
    compiled = jax.ffi.ffi_call("mbjax_zeros", jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)))
    return jax.lax.platform_dependent(cpu=compiled, default=lambda: jnp.zeros(shape, dtype))


def scratch_bytes(h_shape: tuple[int, ...], kv_shape: tuple[int, ...], shape: Shape, n_packs: int) -> int:
    """What a call needs besides its arguments."""
    rows, heads = h_shape[0] * h_shape[1], shape.heads
    kv_heads, _, head_dim = kv_shape[3:]
    maps = [place for layer in shape.places for place in layer.maps]
    width = max(-(-place.width // 32) * 32 for place in maps)
    wide = shape.rank() > 0 or any(place.bits == 32 for place in maps)
    queries, keys = aligned(4 * rows * heads * head_dim), aligned(4 * rows * kv_heads * head_dim)
    parts = attention_bytes((*h_shape[:2], heads, head_dim), kv_shape[2:])
    low = aligned(4 * rows * 3 * n_packs * shape.rank())
    rounded = activation_bytes(rows, width) + (aligned(4 * rows * width) if wide else 0)
    return rounded + 2 * queries + 2 * keys + 2 * aligned(4 * rows * shape.ffn) + parts + low
