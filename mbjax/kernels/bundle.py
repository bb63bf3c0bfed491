"""All weights of some layers in one run of bytes, in the order in which a step reads them.

One array instead of hundreds: a jitted call then costs no time for its arguments, the memory system sees one stream,
and the bytes lie in huge pages. A quantised map lies there tile by tile: the values of 16 outputs, their scales, their
mins (see `tiles`). Norms and biases are float32. Every part starts on a cache line.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.kernels import tiles
from mbjax.kernels.linear import ALIGN, aligned

MAPS = ("q", "k", "v", "o", "gate", "up", "down")
VECTORS = ("attn_norm", "mlp_norm", "q_bias", "k_bias", "v_bias", "q_norm", "k_norm")


class Quantized(NamedTuple):
    """A tiled weight: values and scales as in `tiles`, mins None where it is symmetric."""

    values: jax.Array
    scales: jax.Array
    mins: jax.Array | None


class LayerWeights(NamedTuple):
    """One layer. Norms and biases are float32 vectors; None where the model has none."""

    q: Quantized  # [H * E, D]
    k: Quantized  # [K * E, D]
    v: Quantized  # [K * E, D]
    o: Quantized  # [D, H * E]
    gate: Quantized  # [F, D]
    up: Quantized  # [F, D]
    down: Quantized  # [D, F]
    attn_norm: jax.Array
    mlp_norm: jax.Array
    q_bias: jax.Array | None = None
    k_bias: jax.Array | None = None
    v_bias: jax.Array | None = None
    q_norm: jax.Array | None = None
    k_norm: jax.Array | None = None

    def maps(self) -> tuple[Quantized, ...]:
        return self[: len(MAPS)]  # pyright: ignore[reportReturnType]

    def vectors(self) -> tuple[jax.Array | None, ...]:
        return self[len(MAPS) :]  # pyright: ignore[reportReturnType]


class MapPlace(NamedTuple):
    """Where a map lies: `bits` 4, 8 or 32 (float32 [out, width] as it is); `width` counts the padding."""

    offset: int
    bits: int
    width: int
    groups: int
    mins: bool
    tiles: int

    @property
    def tile_bytes(self) -> int:
        return tiles.LANES * (self.width * self.bits // 8 + self.groups * (4 if self.mins else 2))


class LayerPlace(NamedTuple):
    """Where a layer's parts lie, in bytes; vectors that the model lacks have offset -1."""

    maps: tuple[MapPlace, ...]  # in the order of MAPS
    vectors: tuple[tuple[int, int], ...]  # (offset, length), in the order of VECTORS

    def numbers(self) -> list[int]:
        """What the handler is told, in the order of src/ffi.cc."""
        return [int(x) for place in self.maps for x in place[:5]] + [offset for offset, _ in self.vectors]


def place_layers(layers: tuple[LayerWeights, ...]) -> tuple[tuple[LayerPlace, ...], int]:
    """Where each layer will lie, from shapes alone, and how many bytes all of them take."""
    places, at = [], 0
    for layer in layers:
        maps = []
        for weight in layer.maps():
            bits = 4 if weight.values.dtype == jnp.uint8 else 8
            width = weight.values.shape[1] * 32 // bits
            place = MapPlace(at, bits, width, weight.scales.shape[1], weight.mins is not None, weight.values.shape[0])
            maps.append(place)
            at = aligned(at + place.tiles * place.tile_bytes)
        vectors = []
        for vector in layer.vectors():
            vectors.append((-1, 0) if vector is None else (at, vector.shape[0]))
            at = at if vector is None else aligned(at + 4 * vector.shape[0])
        places.append(LayerPlace(tuple(maps), tuple(vectors)))
    return tuple(places), at


def fill(buffer: np.ndarray, place: LayerPlace, layer: LayerWeights) -> None:
    """Writes one layer into the bytes uint8 [n] of all of them."""
    for where, weight in zip(place.maps, layer.maps(), strict=True):
        out = buffer[where.offset :][: where.tiles * where.tile_bytes].reshape(where.tiles, where.tile_bytes)
        at = 0
        for part in weight:
            if part is not None:
                raw = np.asarray(part).reshape(where.tiles, -1).view(np.uint8)
                out[:, at : at + raw.shape[1]] = raw
                at += raw.shape[1]
    for (offset, length), vector in zip(place.vectors, layer.vectors(), strict=True):
        if vector is not None:
            buffer[offset : offset + 4 * length] = np.asarray(vector, np.float32).view(np.uint8)


def unpack(buffer: jax.Array, place: LayerPlace) -> LayerWeights:
    """The layer that lies at `place`; copies, to be jitted."""
    maps = [_unpack_map(buffer, where) for where in place.maps]
    vectors = [
        None if offset < 0 else _as(jnp.float32, buffer[offset : offset + 4 * length])
        for offset, length in place.vectors
    ]
    return LayerWeights(*maps, *vectors)  # pyright: ignore[reportArgumentType] - both norms are there


def _unpack_map(buffer: jax.Array, where: MapPlace) -> Quantized:
    whole = buffer[where.offset : where.offset + where.tiles * where.tile_bytes].reshape(where.tiles, -1)
    n_values, n_scales = tiles.LANES * where.width * where.bits // 8, 2 * tiles.LANES * where.groups
    values = whole[:, :n_values].reshape(where.tiles, -1, tiles.LANES, 4)
    values = values if where.bits == 4 else jax.lax.bitcast_convert_type(values, jnp.int8)
    scales = _as(jnp.float16, whole[:, n_values : n_values + n_scales]).reshape(where.tiles, -1, tiles.LANES)
    mins = _as(jnp.float16, whole[:, n_values + n_scales :]).reshape(scales.shape) if where.mins else None
    return Quantized(values, scales, mins)


def _as(dtype: type, raw: jax.Array) -> jax.Array:
    """Bytes [..., n] as an array of another dtype [..., n / size]."""
    size = jnp.dtype(dtype).itemsize
    return jax.lax.bitcast_convert_type(raw.reshape(*raw.shape[:-1], -1, size), dtype)


def in_huge_pages(n_bytes: int) -> np.ndarray:
    """Zeros uint8 [n_bytes] on a cache line, so that JAX on the CPU takes it over without a copy. numpy asks
    for huge pages where an array is large: with small ones a step spends a third of its time on page tables."""
    whole = np.zeros(n_bytes + ALIGN, np.uint8)  # fresh pages, which are zero already
    return whole[-whole.ctypes.data % ALIGN :][:n_bytes]
