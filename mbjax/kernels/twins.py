"""Each CPU kernel in plain JAX: what the tests compare it with, and what runs where the kernels are not built.

Letters: B lanes, T tokens, S cached positions, H query heads, K key/value heads, G queries per KV head, E head width.
"""

import math

import jax
import jax.numpy as jnp

from mbjax.kernels import tiles


def dequantize(values: jax.Array, scales: jax.Array, mins: jax.Array | None) -> jax.Array:
    """Plain values, scales and mins to float32 [out, K]. Four bits without mins have their zero at 8."""
    four = values.dtype == jnp.uint8
    q = (tiles.unpack4(values) if four else values).astype(jnp.float32)
    out, groups = scales.shape
    if four and mins is None:
        q = q - 8.0
    w = q.reshape(out, groups, -1) * scales.astype(jnp.float32)[:, :, None]
    if mins is not None:
        w = w + mins.astype(jnp.float32)[:, :, None]
    return w.reshape(out, -1)


def quantize_activations(x: jax.Array, group: int = tiles.BLOCK) -> tuple[jax.Array, jax.Array]:
    """x [R, K], K a multiple of group, to int8 [R, K] and float32 scales [R, K / group]; zero groups have scale 0."""
    blocks = x.reshape(x.shape[0], x.shape[1] // group, group)
    largest = jnp.abs(blocks).max(-1, keepdims=True)
    q = jnp.round(blocks * jnp.where(largest > 0, 127.0 / largest, 0.0))
    return q.astype(jnp.int8).reshape(x.shape), (largest / 127.0)[..., 0]


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    scaled = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + eps)
    return scaled * jnp.broadcast_to(weight, x.shape)


def linear(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    mins: jax.Array | None,
    out: int,
    norm: jax.Array | None = None,
    bias: jax.Array | None = None,
    eps: float = 0.0,
) -> jax.Array:
    """x [R, in] times a tiled weight, activations rounded to int8 in groups of 32: float32 [R, out]."""
    w = dequantize(
        tiles.untile_values(values, out),
        tiles.untile_scales(scales, out),
        None if mins is None else tiles.untile_scales(mins, out),
    )
    if norm is not None:
        x = rms_norm(x, norm, eps)
    x = jnp.pad(x, ((0, 0), (0, w.shape[1] - x.shape[1])))
    q, scale = quantize_activations(x)
    rounded = q.astype(jnp.float32).reshape(*scale.shape, tiles.BLOCK) * scale[..., None]
    y = jnp.dot(rounded.reshape(x.shape), w.T, precision=jax.lax.Precision.HIGHEST)
    return y if bias is None else y + bias[None, :]


def attend(
    q: jax.Array,
    lengths: jax.Array,
    k: jax.Array,
    v: jax.Array,
    k_scales: jax.Array | None = None,
    v_scales: jax.Array | None = None,
) -> jax.Array:
    """Queries [B, T, H, E] against caches [B, K, S, E] that hold `lengths[b]` positions and then the T new ones."""
    lanes, tokens, heads, width = q.shape
    keys, values = (
        c.astype(jnp.float32) if s is None else c.astype(jnp.float32) * s[..., None]
        for c, s in ((k, k_scales), (v, v_scales))
    )
    grouped = q.reshape(lanes, tokens, k.shape[1], -1, width) / math.sqrt(width)
    scores = jnp.einsum("btkge,bkse->bkgts", grouped, keys, precision=jax.lax.Precision.HIGHEST)
    limit = lengths[:, None] + jnp.arange(1, tokens + 1, dtype=jnp.int32)[None, :]
    steps = jnp.arange(k.shape[2])[None, None, :]
    seen = steps < limit[:, :, None]
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), axis=-1)
    valid = (steps < limit[:, None, -1:]).swapaxes(1, 2)[:, None]
    values = jnp.where(valid, values, 0.0)  # what lies beyond may be NaN, and 0 * NaN is NaN
    mixed = jnp.einsum("bkgts,bkse->btkge", weights, values, precision=jax.lax.Precision.HIGHEST)
    return mixed.reshape(lanes, tokens, heads, width)


def quantize_kv(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Keys or values [..., E] to int8 with one float32 scale per position and head."""
    largest = jnp.abs(x).max(-1)
    q = jnp.round(x * jnp.where(largest > 0, 127.0 / largest, 0.0)[..., None])
    return q.astype(jnp.int8), largest / 127.0
