"""New keys and values put into a cache, and queries made ready for it, on a graphics card: rotation, the norms of single
heads where a base has them, and int8 rounding in one launch. Letters: B rows of a step, T tokens, O tokens of a block,
H and K query and key/value heads, E head width."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

_TOKENS = 16  # of one program, at most


def place(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    starts: jax.Array,
    seats: jax.Array,
    inv_freq: jax.Array,
    caches: tuple[jax.Array, ...],
    norms: tuple[jax.Array, jax.Array] | None,
    *,
    eps: float,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """q [B, T, H, E], k and v [B, T, K, E], as the maps give them; starts and seats int32 [B], as in `attend`; inv_freq
    float32 [E / 2]; caches (k, v) [N, K, S, E], int8 ones with their scales (k, v) float32 [N, K, S] behind them.

    Returns q normed and rotated, and the caches, updated in place where they are donated.
    """
    n_batch, n_tokens, n_heads, width = q.shape
    block = min(_TOKENS, n_tokens & -n_tokens)
    warps = max(1, block * width // 256)  # a thread turns 4 pairs: with 16 the same launch takes twice as long
    operands = [q, k, v, starts, seats, inv_freq, *(norms or ()), *caches]
    first = len(operands) - len(caches)
    found = pl.pallas_call(
        partial(_place, block=block, normed=norms is not None, eps=eps),
        grid=(n_batch, n_tokens // block, n_heads + 2 * k.shape[2]),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, *caches)],
        input_output_aliases={first + i: 1 + i for i in range(len(caches))},
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
        name="place",
    )(*operands)
    return found[0], tuple(found[1:])


def _place(
    q_ref: Any,
    k_ref: Any,
    v_ref: Any,
    starts: Any,
    seats: Any,
    freq_ref: Any,
    *refs: Any,
    block: int,
    normed: bool,
    eps: float,
) -> None:
    """One head of a block of tokens."""
    norms, refs = (refs[:2], refs[2:]) if normed else ((None, None), refs)
    n_caches = (len(refs) - 1) // 2
    out, caches = refs[n_caches], refs[n_caches + 1 :]
    row, first, head = pl.program_id(0), pl.program_id(1) * block, pl.program_id(2)
    n_heads, n_kv = q_ref.shape[2], k_ref.shape[2]
    tokens = pl.ds(first, block)
    at = starts[row] + first + jax.lax.iota(jnp.int32, block)
    at = jnp.minimum(at, caches[0].shape[2] - 1)  # never behind a lane's end
    angle = at.astype(jnp.float32)[:, None] * freq_ref[:][None, :]
    turn = jnp.cos(angle), jnp.sin(angle)

    @pl.when(head < n_heads)
    def _() -> None:
        parts = _rotated(_halves(q_ref, row, tokens, head), norms[0], turn, eps)
        for half, value in zip(_columns(q_ref.shape[3]), parts, strict=True):
            out[row, tokens, head, half] = value.astype(out.dtype)

    @pl.when((head >= n_heads) & (head < n_heads + n_kv))
    def _() -> None:
        own = head - n_heads
        parts = _rotated(_halves(k_ref, row, tokens, own), norms[1], turn, eps)
        _write(caches[0::2], seats[row], own, at, parts)

    @pl.when(head >= n_heads + n_kv)
    def _() -> None:
        own = head - n_heads - n_kv
        _write(caches[1::2], seats[row], own, at, _halves(v_ref, row, tokens, own))


def _columns(width: int) -> list[Any]:
    return [pl.ds(0, width // 2), pl.ds(width // 2, width // 2)]


def _halves(ref: Any, row: jax.Array, tokens: Any, head: jax.Array) -> list[jax.Array]:
    """The two halves of a head, float32 [O, E / 2] each."""
    return [ref[row, tokens, head, half].astype(jnp.float32) for half in _columns(ref.shape[3])]


def _rotated(parts: list[jax.Array], norm: Any, turn: tuple[jax.Array, jax.Array], eps: float) -> list[jax.Array]:
    """The halves normed, where a base does so, and rotated."""
    a, b = parts
    if norm is not None:
        squares = jnp.sum(a * a, axis=1) + jnp.sum(b * b, axis=1)
        by = jax.lax.rsqrt(squares / (2 * a.shape[1]) + eps)[:, None]
        a, b = (x * by * norm[half][None, :] for x, half in zip(parts, _columns(2 * a.shape[1]), strict=True))
    cos, sin = turn
    return [a * cos - b * sin, b * cos + a * sin]


def _write(caches: Any, seat: jax.Array, head: jax.Array, at: jax.Array, halves: list[jax.Array]) -> None:
    """Into a cache, or into an int8 one and its scales; rounding as `twins.quantize_kv` does it."""
    values = caches[0]
    if len(caches) == 2:
        largest = jnp.maximum(*(jnp.max(jnp.abs(half), axis=1) for half in halves))
        by = jnp.where(largest > 0, 127.0 / jnp.maximum(largest, 1e-30), 0.0)[:, None]
        halves = [jnp.floor(half * by + 0.5) for half in halves]  # Triton has no round
        caches[1][seat, head, at] = largest / 127.0
    for part, half in zip(_columns(values.shape[3]), halves, strict=True):
        column = part.start + jax.lax.iota(jnp.int32, part.size)
        values[seat, head, at[:, None], column[None, :]] = half.astype(values.dtype)
