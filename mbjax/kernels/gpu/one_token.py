"""Attention of a step of one token a row, in one launch: the new key and value are put into the cache, the queries made
ready for it, the valid positions split among programs, and the splits put together by whichever of them ends last.

A tile is 64 positions. While there are no more of them than programs, each has one, so that nobody waits for a second;
beyond, each has as many as the others. Letters: B rows of a step, S positions, H and K query and key/value heads, E head
width.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mbjax.kernels.gpu import POSITIONS, dot

_LOWEST = -1e30
_SPLITS = 32  # programs of one key/value head of a row, at most
_TOGETHER = 8  # splits that are put together at a time
QUERIES = 16  # of one key/value head, at most; where they are fewer, copies of the last


class _Shape(NamedTuple):
    """Splits of a head; whether heads are normed; arrays of the cache."""

    n_splits: int
    normed: bool
    n_caches: int
    eps: float


def attend_one(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    starts: jax.Array,
    seats: jax.Array,
    arrivals: jax.Array,
    inv_freq: jax.Array,
    caches: tuple[jax.Array, ...],
    norms: tuple[jax.Array, jax.Array] | None,
    *,
    eps: float,
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """The arguments are those of `place`, for one token a row, and arrivals int32 [B * K], zeros.

    Returns what the heads give [B, 1, H, E], and arrivals, zeros again, and the caches, updated in place where they are
    donated.
    """
    n_batch, width = q.shape[0], q.shape[3]
    n_kv, capacity = caches[0].shape[1:3]
    n_splits = min(_SPLITS, capacity // POSITIONS)
    shape = _Shape(n_splits, norms is not None, len(caches), eps)
    operands = [q, k, v, starts, seats, inv_freq, *(norms or ()), arrivals, *caches]
    whole = (n_batch * n_kv, n_splits, QUERIES)
    scratch = [(*whole, width), whole, whole]
    kept = operands[-1 - len(caches) :]
    found = pl.pallas_call(
        partial(_attend_one, shape=shape),
        grid=(n_batch * n_kv, n_splits),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in kept),
            *(jax.ShapeDtypeStruct(x, jnp.float32) for x in scratch),
        ],
        input_output_aliases={len(operands) - len(kept) + i: 1 + i for i in range(len(kept))},
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=2),
        name="attend_one",
    )(*operands)
    return found[0], found[1], tuple(found[2 : 2 + len(caches)])


def _attend_one(q_ref: Any, k_ref: Any, v_ref: Any, starts: Any, seats: Any, *refs: Any, shape: _Shape) -> None:
    """One split of one key/value head of a row."""
    out, arrivals, *caches = refs[-4 - shape.n_caches - 1 : -3]
    freq, norms = refs[0], refs[1:3] if shape.normed else (None, None)
    n_kv, capacity = caches[0].shape[1:3]
    pair, split = pl.program_id(0), pl.program_id(1)
    row, head = pair // n_kv, pair % n_kv
    own = jnp.minimum(starts[row], capacity - 1)  # never behind a lane's end
    n_tiles = own // POSITIONS + 1
    n_each = (n_tiles + shape.n_splits - 1) // shape.n_splits
    n_used = (n_tiles + n_each - 1) // n_each
    tiles = split * n_each, jnp.minimum((split + 1) * n_each, n_tiles)
    place = _Place(row, head, seats[row], own)

    @pl.when(split < n_used)
    def _() -> None:
        queries = place.queries(q_ref.shape[2] // n_kv)
        first = place.tile(caches, tiles[0])  # on its way while the queries are turned
        q = _turned(q_ref, row, queries, norms[0], freq, own, shape.eps).astype(q_ref.dtype)
        k = _turned(k_ref, row, head[None], norms[1], freq, own, shape.eps)
        v = v_ref[row, 0, head, :].astype(jnp.float32)
        new = [_stored(x, caches) for x in (jnp.sum(k, axis=0), v)]
        for ref, value in zip(refs[-3:], _over_tiles(q, caches, new, place, tiles, first), strict=True):
            ref[pair, split] = value

        @pl.when(split == n_used - 1)
        def _() -> None:
            for cache, value in zip(caches, _in_order(new), strict=True):
                cache[(place.seat, head, own, *([slice(None)] * (len(cache.shape) - 3)))] = value

        plgpu.debug_barrier()  # all threads have written before this program arrives
        before = plgpu.atomic_add(arrivals, pair, 1 + 0 * pair)

        @pl.when(before == n_used - 1)
        def _() -> None:
            mixed = _together(refs[-3:], pair, n_used)
            out[row, 0, queries[:, None], jax.lax.iota(jnp.int32, out.shape[3])[None, :]] = mixed.astype(out.dtype)
            arrivals[pair] = 0 * pair


class _Place(NamedTuple):
    """What a program reads: row, key/value head, lane, and the position of the row's token."""

    row: jax.Array
    head: jax.Array
    seat: jax.Array
    own: jax.Array

    def queries(self, group: int) -> jax.Array:
        """The heads int32 [16] that read this one."""
        return self.head * group + jnp.minimum(jax.lax.iota(jnp.int32, QUERIES), group - 1)

    def tile(self, caches: Any, i: jax.Array) -> list[jax.Array]:
        """Keys and values [64, E] of a tile, and their scales [64], if any."""
        at = pl.ds(i * POSITIONS, POSITIONS)
        both = [cache[self.seat, self.head, at, :] for cache in caches[:2]]
        return [*both, *(cache[self.seat, self.head, at] for cache in caches[2:])]


def _over_tiles(
    q: jax.Array, caches: Any, new: Any, place: _Place, tiles: tuple[jax.Array, jax.Array], first: list[jax.Array]
) -> tuple[jax.Array, ...]:
    """Over tiles [begin, end), the first of them read: values mixed float32 [16, E], the largest score and the sum of
    weights [16]."""
    scale = math.log2(math.e) / math.sqrt(q.shape[1])

    def accumulate(i: jax.Array, tile: list[jax.Array], state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        mixed, top, total = state
        position = i * POSITIONS + jax.lax.iota(jnp.int32, POSITIONS)
        k, v, *by = _with_own(tile, _in_order(new), position == place.own)
        scores = dot(q, k.astype(q.dtype).T) * scale
        scores = scores * by[0][None, :] if by else scores
        seen = (position <= place.own)[None, :]
        scores = jnp.where(seen, scores, _LOWEST)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.where(seen, jnp.exp2(scores - new_top[:, None]), 0.0)
        keep = jnp.exp2(top - new_top)
        total = total * keep + jnp.sum(weights, axis=1)
        weights = weights * by[1][None, :] if by else weights
        return mixed * keep[:, None] + dot(weights.astype(q.dtype), v.astype(q.dtype)), new_top, total

    zero = jnp.zeros((QUERIES,), jnp.float32)
    state = accumulate(tiles[0], first, (jnp.zeros(q.shape, jnp.float32), zero + _LOWEST, zero))
    rest = tiles[0] + 1, tiles[1]
    return jax.lax.fori_loop(*rest, lambda i, state: accumulate(i, place.tile(caches, i), state), state)


def _with_own(tile: list[Any], new: list[Any], is_own: jax.Array) -> list[jax.Array]:
    """The tile with this step's key and value in it: other programs may read the cache before it holds them."""
    return [
        jnp.where(is_own[:, None], value[None, :], x) if x.ndim == 2 else jnp.where(is_own, value, x)
        for x, value in zip(tile, new, strict=True)
    ]


def _in_order(new: Any) -> list[jax.Array]:
    """Key, value, and their scales, if any: as the arrays of a cache come."""
    return [x for pair in zip(*new, strict=True) for x in pair]


def _turned(ref: Any, row: jax.Array, heads: jax.Array, norm: Any, freq: Any, own: jax.Array, eps: float) -> jax.Array:
    """float32 [N, E] of heads int32 [N] of what the maps gave: normed, where a base does so, and rotated."""
    width = ref.shape[3]
    column = jax.lax.iota(jnp.int32, width)
    other = (column + width // 2) % width
    x, partner = (ref[row, 0, heads[:, None], at[None, :]].astype(jnp.float32) for at in (column, other))
    if norm is not None:
        by = jax.lax.rsqrt(jnp.sum(x * x, axis=1) / width + eps)[:, None]
        x, partner = x * by * norm[column][None, :], partner * by * norm[other][None, :]
    angle = own.astype(jnp.float32) * freq[column % (width // 2)]
    sign = jnp.where(column < width // 2, -1.0, 1.0)
    return x * jnp.cos(angle)[None, :] + partner * (sign * jnp.sin(angle))[None, :]


def _stored(x: jax.Array, caches: Any) -> list[jax.Array]:
    """float32 [E] as a cache keeps it, with the scale [] of an int8 one, as `twins.quantize_kv` rounds."""
    if len(caches) == 2:
        return [x.astype(caches[0].dtype)]
    largest = jnp.max(jnp.abs(x))
    by = jnp.where(largest > 0, 127.0 / jnp.maximum(largest, 1e-30), 0.0)
    return [jnp.floor(x * by + 0.5).astype(caches[0].dtype), largest / 127.0]  # Triton has no round


def _together(parts: Any, pair: jax.Array, n_used: jax.Array) -> jax.Array:
    """The splits of a head put together: float32 [16, E]. Those behind the last one in use were never written."""
    n_splits, _, width = parts[0].shape[1:]
    size = min(_TOGETHER, 1 << (n_splits - 1).bit_length())

    def add(i: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        mixed, top, total = state
        split = i * size + jax.lax.iota(jnp.int32, size)[:, None]
        query = jax.lax.iota(jnp.int32, QUERIES)[None, :]
        used = jnp.broadcast_to(split < n_used, (size, QUERIES))
        tops = plgpu.load(parts[1].at[pair, split, query], mask=used, other=_LOWEST)
        totals = plgpu.load(parts[2].at[pair, split, query], mask=used, other=0.0)
        place = pair, split[:, :, None], query[:, :, None], jax.lax.iota(jnp.int32, width)[None, None, :]
        whole = jnp.broadcast_to(used[:, :, None], (size, QUERIES, width))
        values = plgpu.load(parts[0].at[place], mask=whole, other=0.0)
        new_top = jnp.maximum(top, jnp.max(tops, axis=0))
        weights, keep = jnp.exp2(tops - new_top[None, :]), jnp.exp2(top - new_top)
        mixed = mixed * keep[:, None] + jnp.sum(values * weights[:, :, None], axis=0)
        return mixed, new_top, total * keep + jnp.sum(totals * weights, axis=0)

    zero = jnp.zeros((QUERIES,), jnp.float32)
    start = (jnp.zeros((QUERIES, width), jnp.float32), zero + _LOWEST, zero)
    mixed, _, total = jax.lax.fori_loop(0, (n_used + size - 1) // size, add, start)
    return mixed / total[:, None]
