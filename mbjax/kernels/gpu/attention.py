"""Attention over the valid positions of a cache, on a graphics card: flash attention, split over the positions where a
step has few queries (Dao et al. 2022, 2023).

Letters: B rows of a step, T tokens, S positions, H and K query and key/value heads, G their ratio, E head width,
Q queries of one key/value head: those of one token side by side, T * G, and up to whole blocks the last one again.
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
_SPLIT = 128  # positions of one program, where queries are few
_FEW, _MANY = 16, 64  # queries of one program


def attend(
    q: jax.Array,
    starts: jax.Array,
    seats: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_scales: jax.Array | None = None,
    v_scales: jax.Array | None = None,
) -> jax.Array:
    """q [B, T, H, E], rotated, not scaled; starts int32 [B], the position of each row's first token; seats int32 [B];
    k and v [N, K, S, E] with the new positions in them, int8 ones with float32 scales [N, K, S] -> [B, T, H, E].
    """
    n_batch, n_tokens, n_heads, width = q.shape
    n_kv, capacity = k.shape[1:3]
    n_queries = n_tokens * n_heads // n_kv
    block = _FEW if n_queries <= _FEW else _MANY
    n_blocks = -(-n_queries // block)
    few = n_blocks == 1 and capacity % _SPLIT == 0
    shape = _Shape(block, _SPLIT if few else capacity)
    scales = () if k_scales is None or v_scales is None else (k_scales, v_scales)
    n_splits = capacity // shape.split
    whole = (n_batch, n_kv, 1 << (n_splits - 1).bit_length(), block)
    result = jax.ShapeDtypeStruct(q.shape, q.dtype)
    partials = [jax.ShapeDtypeStruct((*whole, width), jnp.float32), *[jax.ShapeDtypeStruct(whole, jnp.float32)] * 2]
    found = pl.pallas_call(
        partial(_attend, shape=shape, quantised=bool(scales)),
        grid=(n_batch * n_kv, n_blocks, n_splits),
        out_shape=partials if few else result,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
        name="attend",
    )(q, starts, seats, k, v, *scales)
    if not few:
        return found
    return pl.pallas_call(
        partial(_combine, split=shape.split),
        grid=(n_batch, n_tokens, n_heads),
        out_shape=result,
        compiler_params=plgpu.CompilerParams(num_warps=2, num_stages=1),
        name="combine",
    )(*found, starts)


class _Shape(NamedTuple):
    """Queries of a block, and positions of a split."""

    block: int
    split: int


def _attend(
    q_ref: Any, starts: Any, seats: Any, k_ref: Any, v_ref: Any, *refs: Any, shape: _Shape, quantised: bool
) -> None:
    """One block of queries over the positions of one split."""
    (block, split), (n_tokens, n_heads, width), n_kv = shape, q_ref.shape[1:], k_ref.shape[1]
    group = n_heads // n_kv
    row, head = pl.program_id(0) // n_kv, pl.program_id(0) % n_kv
    first = (pl.num_programs(1) - 1 - pl.program_id(1)) * block  # the last see most, so they begin first
    at = pl.program_id(2)
    start, seat = starts[row], seats[row]
    query = first + jax.lax.iota(jnp.int32, block)
    token = jnp.minimum(query // group, n_tokens - 1)
    columns = jax.lax.iota(jnp.int32, width)[None, :]
    place = (row, token[:, None], (head * group + query % group)[:, None], columns)
    q = q_ref[place]
    own = start + token  # each query's position
    begin = at * split
    seen_by_all = start + jnp.minimum(first // group, n_tokens - 1) + 1 - begin
    seen_by_any = start + jnp.minimum((first + block - 1) // group + 1, n_tokens) - begin
    scale = math.log2(math.e) / math.sqrt(width)

    def accumulate(i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array], masked: bool) -> Any:
        top, total, mixed = state
        places = pl.ds(begin + i * POSITIONS, POSITIONS)
        values = v_ref[seat, head, places, :].astype(q.dtype)  # on its way while the scores are made
        scores = dot(q, k_ref[seat, head, places, :].astype(q.dtype).T) * scale
        if quantised:
            scores = scores * refs[0][seat, head, places][None, :]
        if masked:
            seen = (begin + i * POSITIONS + jax.lax.iota(jnp.int32, POSITIONS))[None, :] <= own[:, None]
            scores = jnp.where(seen, scores, _LOWEST)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        weights = jnp.exp2(scores - new_top[:, None])
        if masked:
            weights = jnp.where(seen, weights, 0.0)
        keep = jnp.exp2(top - new_top)
        total = total * keep + jnp.sum(weights, axis=1)
        if quantised:
            weights = weights * refs[1][seat, head, places][None, :]
        return new_top, total, mixed * keep[:, None] + dot(weights.astype(q.dtype), values)

    zero = jnp.zeros((block,), jnp.float32)
    state = (zero + _LOWEST, zero, jnp.zeros((block, width), jnp.float32))
    n_whole = jnp.clip(seen_by_all // POSITIONS, 0, split // POSITIONS)
    n_steps = jnp.clip((seen_by_any + POSITIONS - 1) // POSITIONS, n_whole, split // POSITIONS)
    state = jax.lax.fori_loop(0, n_whole, partial(accumulate, masked=False), state)
    top, total, mixed = jax.lax.fori_loop(n_whole, n_steps, partial(accumulate, masked=True), state)
    if len(refs) == 1 + 2 * quantised:
        refs[-1][place] = (mixed / total[:, None]).astype(q.dtype)  # the last one's copies write what it does
        return
    for ref, value in zip(refs[-3:], (mixed, top, total), strict=True):
        ref[row, head, at] = value


def _combine(mixed_ref: Any, top_ref: Any, total_ref: Any, starts: Any, out: Any, *, split: int) -> None:
    """Puts the splits of one query together; what lies behind the last one in use was never written."""
    row, token, head = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    group = out.shape[2] // mixed_ref.shape[1]
    kv_head, query = head // group, token * group + head % group
    used = jax.lax.iota(jnp.int32, mixed_ref.shape[2]) * split <= starts[row] + token
    top = jnp.where(used, top_ref[row, kv_head, :, query], _LOWEST)
    weights = jnp.where(used, jnp.exp2(top - jnp.max(top)), 0.0)
    total = jnp.sum(jnp.where(used, total_ref[row, kv_head, :, query], 0.0) * weights)
    mixed = jnp.where(used[:, None], mixed_ref[row, kv_head, :, query, :], 0.0) * weights[:, None]
    out[row, token, head, :] = (jnp.sum(mixed, axis=0) / total).astype(out.dtype)
