"""Attention over the valid positions of a cache, on a graphics card: flash attention, split over the positions where a
step has few queries (Dao et al. 2022, 2023).

Letters: B rows of a step, T tokens, S positions, H and K query and key/value heads, G their ratio, E head width,
Q queries of one key/value head: those of one token side by side, T * G, padded to whole blocks.
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
_QUERIES = 64  # of one program; 16 where there are no more
_SPLIT = 128  # positions of one program, where queries are few


def padded_queries(n_tokens: int, group: int) -> int:
    """Q."""
    block = _block(n_tokens * group)
    return -(-n_tokens * group // block) * block


def grouped_queries(q: jax.Array, n_kv: int) -> jax.Array:
    """q [B, T, H, E] as `attend` takes it, [B, K, Q, E]."""
    n_batch, n_tokens, n_heads, width = q.shape
    group = n_heads // n_kv
    grouped = q.reshape(n_batch, n_tokens, n_kv, group, width).transpose(0, 2, 1, 3, 4)
    grouped = grouped.reshape(n_batch, n_kv, n_tokens * group, width)
    return jnp.pad(grouped, ((0, 0), (0, 0), (0, padded_queries(n_tokens, group) - n_tokens * group), (0, 0)))


def attend(
    queries: jax.Array,
    n_heads: int,
    n_tokens: int,
    starts: jax.Array,
    seats: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_scales: jax.Array | None = None,
    v_scales: jax.Array | None = None,
) -> jax.Array:
    """queries [B, K, Q, E], rotated, not scaled; starts int32 [B], the position of each row's first token; seats int32
    [B]; k and v [N, K, S, E] with the new positions in them, int8 ones with float32 scales [N, K, S] -> [B, T, H, E].
    """
    n_batch, n_kv, padded, width = queries.shape
    capacity = k.shape[2]
    shape = _Shape(_block(padded), _SPLIT, n_heads // n_kv, n_tokens)
    few = padded == shape.block and capacity % _SPLIT == 0
    if not few:
        shape = shape._replace(split=capacity)
    scales = () if k_scales is None or v_scales is None else (k_scales, v_scales)
    n_splits = capacity // shape.split
    kept = 1 << (n_splits - 1).bit_length()
    whole = (n_batch, n_kv, kept, padded)
    result = jax.ShapeDtypeStruct((n_batch, n_tokens, n_heads, width), queries.dtype)
    partials = [jax.ShapeDtypeStruct((*whole, width), jnp.float32), *[jax.ShapeDtypeStruct(whole, jnp.float32)] * 2]
    found = pl.pallas_call(
        partial(_attend, shape=shape, quantised=bool(scales)),
        grid=(n_batch * n_kv, padded // shape.block, n_splits),
        out_shape=partials if few else jax.ShapeDtypeStruct(queries.shape, queries.dtype),
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        name="attend",
    )(queries, starts, seats, k, v, *scales)
    if few:
        return pl.pallas_call(
            partial(_combine, shape=shape),
            grid=(n_batch, n_tokens, n_heads),
            out_shape=result,
            compiler_params=plgpu.CompilerParams(num_warps=2, num_stages=1),
            name="combine",
        )(*found, starts)
    mixed = found[:, :, : n_tokens * shape.group].reshape(n_batch, n_kv, n_tokens, shape.group, width)
    return mixed.transpose(0, 2, 1, 3, 4).reshape(result.shape)


class _Shape(NamedTuple):
    """Queries of a block, positions of a split, queries per key/value head and token, tokens."""

    block: int
    split: int
    group: int
    n_tokens: int


def _block(n_queries: int) -> int:
    return 16 if n_queries <= 16 else _QUERIES


def _attend(
    q_ref: Any, starts: Any, seats: Any, k_ref: Any, v_ref: Any, *refs: Any, shape: _Shape, quantised: bool
) -> None:
    """One block of queries over the positions of one split."""
    (block, split, group, n_tokens), width = shape, k_ref.shape[3]
    row, head = pl.program_id(0) // k_ref.shape[1], pl.program_id(0) % k_ref.shape[1]
    first, at = pl.program_id(1) * block, pl.program_id(2)
    queries = pl.ds(first, block)
    start, seat = starts[row], seats[row]
    q = q_ref[row, head, queries, :]
    own = start + jnp.minimum((first + jax.lax.iota(jnp.int32, block)) // group, n_tokens - 1)  # each query's position
    end = start + jnp.minimum((first + block - 1) // group + 1, n_tokens)  # behind all that any of them sees

    def accumulate(i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        top, total, mixed = state
        begin = at * split + i * POSITIONS
        places = pl.ds(begin, POSITIONS)
        values = v_ref[seat, head, places, :].astype(q.dtype)  # on its way while the scores are made
        scores = dot(q, k_ref[seat, head, places, :].astype(q.dtype).T) / math.sqrt(width)
        if quantised:
            scores = scores * refs[0][seat, head, places][None, :]
        seen = (begin + jax.lax.iota(jnp.int32, POSITIONS))[None, :] <= own[:, None]
        scores = jnp.where(seen, scores, _LOWEST)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.where(seen, jnp.exp(scores - new_top[:, None]), 0.0)
        keep = jnp.exp(top - new_top)
        total = total * keep + jnp.sum(weights, axis=1)
        if quantised:
            weights = weights * refs[1][seat, head, places][None, :]
        return new_top, total, mixed * keep[:, None] + dot(weights.astype(q.dtype), values)

    zero = jnp.zeros((block,), jnp.float32)
    state = (zero + _LOWEST, zero, jnp.zeros((block, width), jnp.float32))
    n_steps = jnp.clip((end - at * split + POSITIONS - 1) // POSITIONS, 0, split // POSITIONS)
    top, total, mixed = jax.lax.fori_loop(0, n_steps, accumulate, state)
    if len(refs) == 1 + 2 * quantised:
        refs[-1][row, head, queries, :] = (mixed / total[:, None]).astype(q.dtype)
        return
    for ref, value in zip(refs[-3:], (mixed, top, total), strict=True):
        ref[row, head, at, queries] = value


def _combine(mixed_ref: Any, top_ref: Any, total_ref: Any, starts: Any, out: Any, *, shape: _Shape) -> None:
    """Puts the splits of one query together; what lies behind the last one in use was never written."""
    row, token, head = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    kv_head, query = head // shape.group, token * shape.group + head % shape.group
    used = jax.lax.iota(jnp.int32, mixed_ref.shape[2]) * shape.split <= starts[row] + token
    top = jnp.where(used, top_ref[row, kv_head, :, query], _LOWEST)
    weights = jnp.where(used, jnp.exp(top - jnp.max(top)), 0.0)
    total = jnp.sum(jnp.where(used, total_ref[row, kv_head, :, query], 0.0) * weights)
    mixed = jnp.where(used[:, None], mixed_ref[row, kv_head, :, query, :], 0.0) * weights[:, None]
    out[row, token, head, :] = (jnp.sum(mixed, axis=0) / total).astype(out.dtype)
