"""Whole decoder layers over a cache in one call: one start of the threads for all of a model's layers.

Letters: B lanes, T tokens, S cached positions, D model width, H query heads, K key/value heads, E head width,
F feed-forward width.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.kernels import native, twins
from mbjax.kernels.attention import HEAD_DIMS, attention_bytes
from mbjax.kernels.linear import activation_bytes, aligned


class Quantized(NamedTuple):
    """A tiled weight: values and scales as in `tiles`, mins None where it is symmetric."""

    values: jax.Array
    scales: jax.Array
    mins: jax.Array | None

    @property
    def width(self) -> int:
        """Inputs, padding counted."""
        return self.values.shape[1] * (8 if self.values.dtype == jnp.uint8 else 4)


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


class KV(NamedTuple):
    """Keys and values [B, K, S, E] of one layer; int8 ones have float32 scales [B, K, S]."""

    k: jax.Array
    v: jax.Array
    k_scales: jax.Array | None = None
    v_scales: jax.Array | None = None


class Angles(NamedTuple):
    """Rotary cosines and sines of the new tokens, float32 [B, T, E / 2]."""

    cos: jax.Array
    sin: jax.Array


def decoder_layers(
    h: jax.Array,
    lengths: jax.Array,
    angles: Angles,
    layers: tuple[LayerWeights, ...],
    caches: tuple[KV, ...],
    heads: int,
    ffn: int,
    eps: float,
) -> tuple[jax.Array, tuple[KV, ...]]:
    """h float32 [B, T, D] through the layers; the T tokens of lane b stand at positions lengths[b] onwards.

    Returns the new h and the caches with the T positions written. Donate the caches: they are then updated in place.
    The caller keeps lengths + T <= S. For up to 16 tokens a row's bits do not depend on how many rows there are.
    """
    if h.size == 0 or caches[0].k.shape[-1] not in HEAD_DIMS or not native.available():
        return _twin(h, lengths, angles, layers, caches, heads, ffn, eps)

    shape: dict[str, Any] = {"heads": heads, "ffn": ffn, "eps": eps}
    compiled, twin = partial(_compiled, **shape), partial(_twin, **shape)
    return jax.lax.platform_dependent(h, lengths, angles, layers, caches, cpu=compiled, default=twin)


def scratch_bytes(h_shape: tuple[int, ...], cache_shape: tuple[int, ...], heads: int, ffn: int, width: int) -> int:
    """What a call needs besides its arguments; `width` is the widest input of its products."""
    rows = h_shape[0] * h_shape[1]
    kv_heads, _, head_dim = cache_shape[1:]
    queries = aligned(4 * rows * heads * head_dim)
    parts = attention_bytes((*h_shape[:2], heads, head_dim), cache_shape)
    keys = aligned(4 * rows * kv_heads * head_dim)
    return activation_bytes(rows, width) + 2 * queries + 2 * keys + 2 * aligned(4 * rows * ffn) + parts


def _compiled(
    h: jax.Array,
    lengths: jax.Array,
    angles: Angles,
    layers: tuple[LayerWeights, ...],
    caches: tuple[KV, ...],
    heads: int,
    ffn: int,
    eps: float,
) -> tuple[jax.Array, tuple[KV, ...]]:
    none, none16 = jnp.zeros((0,), jnp.float32), jnp.zeros((0,), jnp.float16)
    operands = [h, lengths, *angles]
    width = max(w.width for layer in layers for w in layer[:7])
    scratch = scratch_bytes(h.shape, caches[0].k.shape, heads, ffn, width)
    results = [jax.ShapeDtypeStruct(h.shape, jnp.float32), jax.ShapeDtypeStruct((scratch,), jnp.uint8)]
    aliases = {}
    for layer, kv in zip(layers, caches, strict=True):
        for values, scales, mins in layer[:7]:
            operands += [values, scales, none16 if mins is None else mins]
        operands += [none if x is None else x for x in layer[7:]]
        for x in kv:
            aliases[len(operands)] = len(results)
            operands.append(none if x is None else x)
            results.append(jax.ShapeDtypeStruct(operands[-1].shape, operands[-1].dtype))
    call = jax.ffi.ffi_call("mbjax_layers", results, input_output_aliases=aliases, vmap_method="sequential")
    h, _, *flat = call(*operands, ffn=np.int64(ffn), heads=np.int64(heads), eps=np.float32(eps))
    new = []
    for i, kv in enumerate(caches):
        k, v, k_scales, v_scales = flat[4 * i : 4 * i + 4]
        new.append(KV(k, v) if kv.k_scales is None else KV(k, v, k_scales, v_scales))
    return h, tuple(new)


def _twin(
    h: jax.Array,
    lengths: jax.Array,
    angles: Angles,
    layers: tuple[LayerWeights, ...],
    caches: tuple[KV, ...],
    heads: int,
    ffn: int,
    eps: float,
) -> tuple[jax.Array, tuple[KV, ...]]:
    new = []
    for layer, kv in zip(layers, caches, strict=True):
        h, kv = twins.decoder_layer(h, lengths, angles, layer, kv, heads, ffn, eps)
        new.append(KV(*kv))
    return h, tuple(new)
