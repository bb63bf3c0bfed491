"""Attention over the valid positions of a cache: the compiled kernel on the CPU, its twin everywhere else."""

import jax
import jax.numpy as jnp

from mbjax.kernels import native, twins
from mbjax.kernels.linear import aligned

HEAD_DIMS = (16, 32, 64, 96, 128, 256)
FEW_TOKENS = 16  # up to here a query's bits do not depend on how many there are; as in src/kernels.h
_SPLIT, _QUERY_TOKENS, _POSITIONS = 128, 16, 64  # as in src/kernels.h and src/stages.h


def attend(
    q: jax.Array,
    lengths: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_scales: jax.Array | None = None,
    v_scales: jax.Array | None = None,
    seats: jax.Array | None = None,
) -> jax.Array:
    """Causal grouped-query attention of T new tokens per lane, reading no position that is not valid.

    q float32 [B, T, H, E], rotated, not scaled; lengths int32 [B], the positions before the T new ones; k and v
    [N, K, S, E], float32, bfloat16 or int8 (then with float32 scales [N, K, S]), already holding the new positions;
    seats int32 [B]: which lane of the cache each lane is, all of them in order if not given.
    Returns float32 [B, T, H, E]. For up to 16 tokens a query's result does not depend on how many there are.
    """
    none = jnp.zeros((0,), jnp.float32)
    seats = jnp.arange(q.shape[0], dtype=jnp.int32) if seats is None else seats
    scales = (none, none) if k_scales is None or v_scales is None else (k_scales, v_scales)
    operands = (q, lengths, seats, k, v, *scales)

    def compiled(*operands: jax.Array) -> jax.Array:
        scratch = attention_bytes(q.shape, k.shape)
        results = (jax.ShapeDtypeStruct(q.shape, jnp.float32), jax.ShapeDtypeStruct((scratch,), jnp.uint8))
        return jax.ffi.ffi_call("mbjax_attend", results, vmap_method="sequential")(*operands)[0]

    def twin(q: jax.Array, lengths: jax.Array, seats: jax.Array, *cache: jax.Array) -> jax.Array:
        own = (part[seats] for part in cache[: 4 if k_scales is not None else 2])
        return twins.attend(q, lengths, *own)

    if not compiled_for(q.shape):
        return twin(*operands)
    return jax.lax.platform_dependent(*operands, cpu=compiled, default=twin)


def compiled_for(q_shape: tuple[int, ...]) -> bool:
    """Whether there is a kernel for queries [B, T, H, E]."""
    return 0 not in q_shape and q_shape[-1] in HEAD_DIMS and native.available()


def attention_bytes(q_shape: tuple[int, ...], cache_shape: tuple[int, ...]) -> int:
    """Scratch of the attention of one layer: partial results of each split, or a block of queries at work."""
    lanes, tokens, heads, width = q_shape
    kv_heads, positions = cache_shape[1:3]
    if tokens <= FEW_TOKENS:
        return aligned(4 * lanes * tokens * heads * -(-positions // _SPLIT) * (width + 2))
    queries = _QUERY_TOKENS * (heads // kv_heads)
    task = _POSITIONS * (2 * width + queries) + queries * (width + 4)
    return aligned(4 * lanes * kv_heads * -(-tokens // _QUERY_TOKENS) * task)
