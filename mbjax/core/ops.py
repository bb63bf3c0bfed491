"""The operations that a block is made of.

Axis letters: B batch, T tokens (queries), S cached positions, D model width, K key/value heads,
G query heads per key/value head, E head width. Norms, softmax and rotations are computed in float32.
"""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mbjax.core import quant
from mbjax.core.cache import LayerKV
from mbjax.core.quant import QTensor
from mbjax.kernels import attention, gpu

BRANCH = 1 << 16  # segment s + n * BRANCH is the n-th continuation of segment s, see `Rows`
_BLOCK = 256  # cached positions that one turn of the attention loop reads
_MASKED = -1e30  # finite, so that a row of masked scores stays free of NaN
_LOWEST = -1e29  # where the running maximum starts: a masked score then has a weight of exactly 0 in any block


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * weight over the last axis; computed in float32, returned in x's dtype."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(row_sum(jnp.square(x32)) / x.shape[-1] + eps)
    return _times_last(x32 * scale[..., None], weight).astype(x.dtype)


def row_sum(x: jax.Array) -> jax.Array:
    """Sum of float32 x [..., N] over its last axis -> [...]; a row's bits do not depend on how many rows there are."""
    return jax.lax.platform_dependent(x, cpu=_row_sum_cpu, default=lambda rows: rows.sum(axis=-1))


def _row_sum_cpu(x: jax.Array) -> jax.Array:
    """XLA's CPU reductions order a row's terms by the shape of the whole; its products do not (two columns: with one
    it is a matrix-vector product, which does)."""
    rows = x.reshape(-1, x.shape[-1])
    return _dot_cpu(rows, jnp.ones((2, x.shape[-1]), x.dtype))[:, 0].reshape(x.shape[:-1])


def lookup(table: jax.Array | QTensor, index: jax.Array) -> jax.Array:
    """Rows of an embedding [V, D], plain or quantised: index int32 [...] -> [..., D]."""
    if isinstance(table, QTensor):
        return quant.rows(table, index).astype(table.dtype)
    return jnp.take(table, index, axis=0)


def linear(x: jax.Array, weight: jax.Array | QTensor, bias: jax.Array | None = None) -> jax.Array:
    """x [..., in] times weight [out, in], plain or quantised, plus bias [out]; in x's dtype.

    A row's bits do not depend on how many rows there are: see `_dot_cpu`.
    """
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(weight, QTensor):
        y = quant.linear(rows, weight)
    else:
        y = jax.lax.platform_dependent(rows, weight, cpu=_dot_cpu, default=_dot)
    if bias is not None:
        y = (y.astype(jnp.float32) + bias[None, :]).astype(x.dtype)
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _dot(rows: jax.Array, weight: jax.Array) -> jax.Array:
    """Sums are float32 whatever the dtype; where both have the same, the products of a gradient have it, too."""
    if rows.dtype == weight.dtype:
        return jnp.einsum("ri,oi->ro", rows, weight)
    return jnp.einsum("ri,oi->ro", rows, weight, preferred_element_type=jnp.float32).astype(rows.dtype)


def _dot_cpu(rows: jax.Array, weight: jax.Array) -> jax.Array:
    """XLA's CPU products of 2, 4 and 8 rows agree bit for bit but one row takes another path, so it gets company.

    A bfloat16 product there is a scalar loop (0.5 GB/s); widened to float32 it is bound by memory.
    """
    wide = [a.astype(jnp.float32) for a in (rows, weight)]
    if rows.shape[0] == 1:
        return _dot(jnp.pad(wide[0], ((0, 1), (0, 0))), wide[1])[:1].astype(rows.dtype)
    return _dot(*wide).astype(rows.dtype)


def rope(x: jax.Array, positions: jax.Array, inv_freq: tuple[float, ...]) -> jax.Array:
    """Rotates the two halves of each head by its position. x [B, T, N, E], positions int32 [B, T]. RoFormer, 3.4.2."""
    freq = jnp.asarray(inv_freq, jnp.float32)
    angle = positions.astype(jnp.float32)[:, :, None, None] * freq[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


@flax.struct.dataclass
class Turn:
    """What queries and keys go through before they meet: norms of single heads, where a base has them, and rotation."""

    norms: tuple[jax.Array, jax.Array] | None  # float32 [E], of queries and of keys
    inv_freq: tuple[float, ...] = flax.struct.field(pytree_node=False)
    eps: float = flax.struct.field(pytree_node=False)


def turned(q: jax.Array, k: jax.Array, positions: jax.Array, turn: Turn) -> tuple[jax.Array, jax.Array]:
    """Queries and keys [B, T, N, E], normed and rotated by their positions int32 [B, T]."""
    if turn.norms is not None:
        q, k = rms_norm(q, turn.norms[0], turn.eps), rms_norm(k, turn.norms[1], turn.eps)
    return rope(q, positions, turn.inv_freq), rope(k, positions, turn.inv_freq)


@flax.struct.dataclass
class Rows:
    """Where the tokens of packed rows stand. Segment 0 is a prefix that every other segment of its row sees.

    A segment may go on in several ways that do not see one another: `s + n * BRANCH` sees itself, s and the prefix.
    """

    positions: jax.Array  # int32 [B, T], within a token's own sequence
    segments: jax.Array  # int32 [B, T]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array | None = None) -> jax.Array:
    """Causal attention of a whole sequence, without a cache: differentiable, and the reference of `attend_cached`.

    q [B, T, H, E]; k, v [B, T, K, E] -> [B, T, H*E]. segments int32 [B, T] as in `Rows`.
    """
    visible = None
    if segments is not None:
        own, seen = segments[:, :, None], segments[:, None, :]
        visible = (seen == own) | (seen == own % BRANCH) | (seen == 0)
    if gpu.available() and q.dtype == jnp.bfloat16:
        return jax.lax.platform_dependent(q, k, v, visible, cuda=_attend_cudnn, default=_attend_whole)
    return _attend_whole(q, k, v, visible)


def _attend_cudnn(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> jax.Array:
    """As `_attend_whole`, by cuDNN's flash attention, which never holds the T*T weights."""
    mask = None if visible is None else visible[:, None]
    mixed = jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True, implementation="cudnn")
    return mixed.reshape(*q.shape[:2], -1)


@jax.checkpoint  # training keeps q, k and v; the T*T weights are cheaper to make again than to hold
def _attend_whole(q: jax.Array, k: jax.Array, v: jax.Array, visible: jax.Array | None) -> jax.Array:
    """visible bool [B, T, T], what each token sees of those before it; None: all."""
    n_tokens = q.shape[1]
    scores = _scores(_group(q, k.shape[2]), k.swapaxes(1, 2), n_tokens)  # [B, K, G, T, T]
    before = jnp.tril(jnp.ones((n_tokens, n_tokens), bool))[None]
    visible = before if visible is None else before & visible
    weights = jax.nn.softmax(jnp.where(visible[:, None, None], scores, _MASKED), axis=-1)
    mixed = _mix(weights, v.swapaxes(1, 2))
    return _ungroup(mixed, n_tokens).astype(q.dtype)


def attend_cached(q: jax.Array, kv: LayerKV, positions: jax.Array, seats: jax.Array | None = None) -> jax.Array:
    """Attention over the cached positions up to each query's own.

    q [B, T, H, E]; kv [N, K, S, E] with the queries' own keys already in; positions int32 [B, T], each row's in
    sequence; seats int32 [B] as in `Cache` -> [B, T, H*E]. Few tokens take the compiled kernel on the CPU, and so does
    every number of them over int8; the rest is a loop of products.
    """
    few = q.shape[1] <= attention.FEW_TOKENS or kv.k_scales is not None
    if not (few and attention.compiled_for(q.shape)):
        return _attend_blocks(q, kv, positions, seats)
    return jax.lax.platform_dependent(q, kv, positions, seats, cpu=_attend_kernel, default=_attend_blocks)


def place_and_attend(
    q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array, kv: LayerKV, seats: jax.Array | None, turn: Turn
) -> tuple[jax.Array, LayerKV]:
    """On a graphics card, of what the maps give: `turned`, `append` and `attend_cached`."""
    from mbjax.kernels.gpu.attention import attend
    from mbjax.kernels.gpu.place import place

    starts, seats = positions[:, 0], jnp.arange(q.shape[0], dtype=jnp.int32) if seats is None else seats
    inv_freq = jnp.asarray(turn.inv_freq, jnp.float32)
    queries, caches = place(q, k, v, starts, seats, inv_freq, kv.arrays(), turn.norms, eps=turn.eps)
    return attend(queries, starts, seats, *caches).reshape(*q.shape[:2], -1), LayerKV(*caches)


def _attend_kernel(q: jax.Array, kv: LayerKV, positions: jax.Array, seats: jax.Array | None) -> jax.Array:
    mixed = attention.attend(q.astype(jnp.float32), positions[:, 0], kv.k, kv.v, kv.k_scales, kv.v_scales, seats)
    return mixed.reshape(*q.shape[:2], -1).astype(q.dtype)


def _attend_blocks(q: jax.Array, kv: LayerKV, positions: jax.Array, seats: jax.Array | None) -> jax.Array:
    """The same in blocks of positions, reading none beyond the last one in use.

    The softmax is accumulated block by block (Milakov and Gimelshein 2018); a block in which a lane has nothing adds
    exact zeros, so that a lane's bits do not depend on how long its neighbours are.
    """
    _, n_kv, capacity, width = kv.k.shape
    n_batch, n_tokens = q.shape[:2]
    grouped = _group(q, n_kv)
    block = min(_BLOCK, capacity) if capacity % min(_BLOCK, capacity) == 0 else math.gcd(capacity, _BLOCK)

    def accumulate(i: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        top, total, mixed = state  # [B, K, G, T], the same, [B, K, G, T, E]
        at = i * block
        k, v = _block(kv.k, kv.k_scales, at, block, seats), _block(kv.v, kv.v_scales, at, block, seats)
        seen = (at + jnp.arange(block, dtype=jnp.int32))[None, None, :] <= positions[:, :, None]  # [B, T, block]
        scores = jnp.where(seen[:, None, None], _scores(grouped, k, n_tokens), _MASKED)
        new_top = jnp.maximum(top, scores.max(axis=-1))
        weights, keep = jnp.exp(scores - new_top[..., None]), jnp.exp(top - new_top)
        ones = jnp.ones((*v.shape[:-1], 1), v.dtype)  # a column that sums the weights in the same product
        both = _mix(weights, jnp.concatenate([v, ones], axis=-1))
        return new_top, total * keep + both[..., -1], mixed * keep[..., None] + both[..., :-1]

    shape = (n_batch, n_kv, q.shape[2] // n_kv, n_tokens)
    start = (
        jnp.full(shape, _LOWEST, jnp.float32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros((*shape, width), jnp.float32),
    )
    n_blocks = jnp.minimum(positions.max() // block + 1, capacity // block)
    _, total, mixed = jax.lax.fori_loop(0, n_blocks, accumulate, start)
    return _ungroup(mixed / total[..., None], n_tokens).astype(q.dtype)


def _block(x: jax.Array, scales: jax.Array | None, at: jax.Array, block: int, seats: jax.Array | None) -> jax.Array:
    """Positions [at, at + block) of the rows' lanes of a cache [N, K, S, E]; int8 ones come out as float32."""

    def cut(lanes: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(lanes, at, block, axis=2)
        return part if seats is None else part[seats]

    return cut(x) if scales is None else cut(x).astype(jnp.float32) * cut(scales)[..., None]


def _group(q: jax.Array, n_kv: int) -> jax.Array:
    """[B, T, H, E] -> [B, K, G*T, E], scaled: the query heads of one key/value head become rows of one product."""
    n_batch, n_tokens, n_heads, width = q.shape
    scaled = q * jnp.asarray(1 / math.sqrt(width), q.dtype)
    grouped = scaled.reshape(n_batch, n_tokens, n_kv, n_heads // n_kv, width).transpose(0, 2, 3, 1, 4)
    return grouped.reshape(n_batch, n_kv, -1, width)


def _ungroup(mixed: jax.Array, n_tokens: int) -> jax.Array:
    """[B, K, G, T, E] -> [B, T, H*E]."""
    return mixed.transpose(0, 3, 1, 2, 4).reshape(mixed.shape[0], n_tokens, -1)


def _scores(grouped: jax.Array, k: jax.Array, n_tokens: int) -> jax.Array:
    """[B, K, G*T, E] and [B, K, S, E] -> float32 [B, K, G, T, S]."""
    scores = jnp.einsum("bkre,bkse->bkrs", grouped, k.astype(grouped.dtype), preferred_element_type=jnp.float32)
    return scores.reshape(*scores.shape[:2], -1, n_tokens, scores.shape[-1])


def _mix(weights: jax.Array, v: jax.Array) -> jax.Array:
    """Float32 [B, K, G, T, S] and [B, K, S, E] -> float32 [B, K, G, T, E]."""
    rows = weights.reshape(*weights.shape[:2], -1, weights.shape[-1])
    mixed = jnp.einsum("bkrs,bkse->bkre", rows, v.astype(jnp.float32))
    return mixed.reshape(*weights.shape[:-1], -1)


def _times_last(x: jax.Array, weight: jax.Array) -> jax.Array:
    return x * weight.reshape((1,) * (x.ndim - 1) + weight.shape)
