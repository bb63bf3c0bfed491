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


@partial(jax.jit, static_argnames="config")  # a jit of its own: the layers are alike, so that it is traced once
def _layer(
    params: Layer, h: jax.Array, positions: jax.Array, kv: LayerKV | None, config: ModelConfig
) -> tuple[jax.Array, LayerKV | None]:
    """One transformer layer. h [B, T, D], positions int32 [B, T]; kv None means a full pass."""
    with jax.named_scope("attention"):
        mixed, kv = _attention(params.attn, h, positions, kv, config)
        h = h + mixed
    with jax.named_scope("mlp"):
        return h + _mlp(params.mlp, h, config), kv


def _attention(
    params: Attention, h: jax.Array, positions: jax.Array, kv: LayerKV | None, config: ModelConfig
) -> tuple[jax.Array, LayerKV | None]:
    x = rms_norm(h, params.norm, config.rms_eps)
    q = _heads(linear(x, params.q, params.q_bias), config.n_heads)
    k = _heads(linear(x, params.k, params.k_bias), config.n_kv_heads)
    v = _heads(linear(x, params.v, params.v_bias), config.n_kv_heads)
    if params.q_norm is not None and params.k_norm is not None:
        q, k = rms_norm(q, params.q_norm, config.rms_eps), rms_norm(k, params.k_norm, config.rms_eps)
    q, k = rope(q, positions, config.inv_freq()), rope(k, positions, config.inv_freq())
    if kv is None:
        mixed = attend(q, k, v)
    else:
        kv = append(kv, k, v, positions[:, 0])
        mixed = attend_cached(q, kv, positions)
    return linear(mixed, params.o), kv


def _mlp(params: Mlp, h: jax.Array, config: ModelConfig) -> jax.Array:
    x = rms_norm(h, params.norm, config.rms_eps)
    return linear(jax.nn.silu(linear(x, params.gate)) * linear(x, params.up), params.down)


def _heads(x: jax.Array, n_heads: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], n_heads, -1)  # [B, T, N*E] -> [B, T, N, E]


def _run(
    params: Base, h: jax.Array, cache: Cache | None, config: ModelConfig, layers: range
) -> tuple[jax.Array, Cache | None]:
    """The given layers over h [B, T, D], at the positions that follow the cache's (from 0 without one)."""
    steps = jnp.arange(h.shape[1], dtype=jnp.int32)[None, :]
    positions = jnp.broadcast_to(steps, h.shape[:2]) if cache is None else cache.length[:, None] + steps
    kvs = list(cache.layers) if cache is not None else []
    for i in layers:
        h, kv = _layer(params.layers[i], h, positions, kvs[i] if kvs else None, config)
        if kv is not None:
            kvs[i] = kv
    return h, None if cache is None else dataclasses.replace(cache, layers=tuple(kvs))


def understand(
    params: Base, tokens: jax.Array, cache: Cache | None, *, config: ModelConfig
) -> tuple[jax.Array, Cache | None]:
    """Embedding and layers `[0, tap)`. tokens int32 [B, T] -> h [B, T, D]."""
    with jax.named_scope("understand"):
        h = jnp.take(params.embed, tokens, axis=0)
        return _run(params, h, cache, config, range(config.tap))


def fuse(
    params: Base, h: jax.Array, cache: Cache | None, *, config: ModelConfig
) -> tuple[jax.Array, Cache | None]:
    """Layers `[tap, L)`. h [B, T, D] -> h [B, T, D]; the cache's length does not move, see `advance`."""
    with jax.named_scope("fuse"):
        return _run(params, h, cache, config, range(config.tap, config.n_layers))


def head(params: Base, h: jax.Array, *, config: ModelConfig) -> jax.Array:
    """Final norm and head, tied or not. h [..., D] -> float32 logits [..., V]."""
    with jax.named_scope("head"):
        weight = params.embed if params.head is None else params.head
        return linear(rms_norm(h, params.norm, config.rms_eps), weight).astype(jnp.float32)


def advance(cache: Cache, n_tokens: jax.Array | int) -> Cache:
    """The cache after `n_tokens` (int or int32 [B]) of the positions just written are declared valid."""
    return dataclasses.replace(cache, length=cache.length + n_tokens)
