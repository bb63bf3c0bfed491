"""Whole layers in one kernel call, where every matrix of them is quantised and tiled for the CPU."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mbjax.core.cache import LayerKV
from mbjax.core.config import ModelConfig
from mbjax.core.quant import QTensor
from mbjax.kernels.layers import KV, Angles, LayerWeights, decoder_layers

if TYPE_CHECKING:
    from mbjax.core.base import Layer


def takes(layers: "tuple[Layer, ...]", deltas: Any) -> bool:
    """Whether `run` can take these layers."""
    weights = [w for layer in layers for w in _matrices(layer)]
    return bool(weights) and all(isinstance(w, QTensor) and w.tiled for w in weights) and not jax.tree.leaves(deltas)


def run(
    layers: "tuple[Layer, ...]", h: jax.Array, positions: jax.Array, kvs: tuple[LayerKV, ...], config: ModelConfig
) -> tuple[jax.Array, tuple[LayerKV, ...]]:
    """As `base.run_layers` with caches: h [B, T, D], positions int32 [B, T], each lane's in sequence."""
    freq = jnp.asarray(config.inv_freq(), jnp.float32)
    angle = positions.astype(jnp.float32)[:, :, None] * freq[None, None, :]
    weights = tuple(_weights(layer) for layer in layers)
    caches = tuple(KV(kv.k, kv.v, kv.k_scales, kv.v_scales) for kv in kvs)
    out, caches = decoder_layers(
        h.astype(jnp.float32),
        positions[:, 0],
        Angles(jnp.cos(angle), jnp.sin(angle)),
        weights,
        caches,
        config.n_heads,
        config.d_ff,
        config.rms_eps,
    )
    return out.astype(h.dtype), tuple(LayerKV(*kv) for kv in caches)


def _matrices(layer: "Layer") -> tuple[Any, ...]:
    attn, mlp = layer.attn, layer.mlp
    return attn.q, attn.k, attn.v, attn.o, mlp.gate, mlp.up, mlp.down


def _weights(layer: "Layer") -> LayerWeights:
    attn = layer.attn
    return LayerWeights(
        *(w.arrays() for w in _matrices(layer)),
        attn.norm,
        layer.mlp.norm,
        attn.q_bias,
        attn.k_bias,
        attn.v_bias,
        attn.q_norm,
        attn.k_norm,
    )
