"""The base model: its parameters, declared once, and its forward pass, cut at the tap.

    h      = understand(base, tokens)     layers [0, tap)
    h      = fuse(base, h)                layers [tap, L)
    logits = head(base, h)

Axis letters: B batch, T tokens, S cached positions, D model width, H query heads, K key/value heads,
G query heads per key/value head, E head width, F feed-forward width, V vocabulary.
"""

import dataclasses
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from mbjax.core.cache import Cache, LayerKV, append
from mbjax.core.config import ModelConfig
from mbjax.core.ops import attend, attend_cached, linear, rms_norm, rope
from mbjax.core.param import Param, fan_in, ones, zeros


@flax.struct.dataclass
class Attention:
    norm: jax.Array  # [D]
    q: jax.Array  # [H*E, D]
    k: jax.Array  # [K*E, D]
    v: jax.Array  # [K*E, D]
    o: jax.Array  # [D, H*E]
    q_bias: jax.Array | None = None  # [H*E], Qwen2
    k_bias: jax.Array | None = None  # [K*E]
    v_bias: jax.Array | None = None  # [K*E]
    q_norm: jax.Array | None = None  # [E], Qwen3
    k_norm: jax.Array | None = None  # [E]


@flax.struct.dataclass
class Mlp:
    norm: jax.Array  # [D]
    gate: jax.Array  # [F, D]
    up: jax.Array  # [F, D]
    down: jax.Array  # [D, F]


@flax.struct.dataclass
class Layer:
    attn: Attention
    mlp: Mlp


@flax.struct.dataclass
class Base:
    embed: jax.Array  # [V, D]
    layers: tuple[Layer, ...]  # L separate pytrees: slicing a stack would copy every layer at every step
    norm: jax.Array  # [D]
    head: jax.Array | None  # [V, D]; None where the head is tied to the embedding


def declare(config: ModelConfig) -> Base:
    """The parameters of a base as a tree of `Param`. Weights are [out, in], as in HF files; norms stay float32."""
    d, f, e, v = config.d_model, config.d_ff, config.head_dim, config.vocab_size
    q_out, kv_out = config.n_heads * e, config.n_kv_heads * e

    def norm(width: int) -> Param:
        return Param((width,), (None,), ones, "float32")

    def bias(width: int, axis: str) -> Param | None:
        return Param((width,), (axis,), zeros, "float32") if config.qkv_bias else None

    def layer() -> Layer:
        attn = Attention(
            norm=norm(d),
            q=Param((q_out, d), ("heads", "embed"), fan_in),
            k=Param((kv_out, d), ("kv_heads", "embed"), fan_in),
            v=Param((kv_out, d), ("kv_heads", "embed"), fan_in),
            o=Param((d, q_out), ("embed", "heads"), fan_in),
            q_bias=bias(q_out, "heads"),
            k_bias=bias(kv_out, "kv_heads"),
            v_bias=bias(kv_out, "kv_heads"),
            q_norm=norm(e) if config.qk_norm else None,
            k_norm=norm(e) if config.qk_norm else None,
        )
        mlp = Mlp(
            norm=norm(d),
            gate=Param((f, d), ("mlp", "embed"), fan_in),
            up=Param((f, d), ("mlp", "embed"), fan_in),
            down=Param((d, f), ("embed", "mlp"), fan_in),
        )
        return Layer(attn, mlp)

    head = None if config.tied_head else Param((v, d), ("vocab", "embed"), fan_in)
    return Base(
        embed=Param((v, d), ("vocab", "embed"), fan_in),
        layers=tuple(layer() for _ in range(config.n_layers)),
        norm=norm(d),
        head=head,
    )
