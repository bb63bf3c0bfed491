"""The base model: its parameters, declared once, and its layers.

Axis letters: B batch, T tokens, S cached positions, D model width, H query heads, K key/value heads,
G query heads per key/value head, E head width, F feed-forward width, V vocabulary, P packs.
"""

from functools import partial
from typing import TYPE_CHECKING

import flax.struct
import jax
import jax.numpy as jnp

from mbjax.core import few_tokens
from mbjax.core.cache import LayerKV, append
from mbjax.core.config import ModelConfig
from mbjax.core.lora import MAP_OUTPUT, LayerLora, adapted
from mbjax.core.ops import Turn, attend, attend_cached, linear, lookup, place_and_attend, rms_norm, turned
from mbjax.core.param import fan_in, ones, param, zeros
from mbjax.kernels import gpu

if TYPE_CHECKING:
    from mbjax.core.fused import Bundle

Deltas = tuple[LayerLora | None, ...]  # one layer's low-rank parts, one entry per pack


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

    def turn(self, config: ModelConfig) -> Turn:
        norms = None if self.q_norm is None or self.k_norm is None else (self.q_norm, self.k_norm)
        return Turn(norms, config.inv_freq(), config.rms_eps)


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
    layers: "tuple[Layer, ...] | Bundle"  # L separate pytrees (slicing a stack would copy them all), or see `fused`
    norm: jax.Array  # [D]
    head: jax.Array | None  # [V, D]; None where the head is tied to the embedding


def declare(config: ModelConfig) -> Base:
    """The parameters of a base as a tree of `Param`. Weights are [out, in], as in HF files; norms stay float32."""
    shape, axes = (config.vocab_size, config.d_model), ("vocab", "embed")
    return Base(
        embed=param(shape, axes, fan_in),
        layers=tuple(declare_layer(config) for _ in range(config.n_layers)),
        norm=_norm(config.d_model),
        head=None if config.tied_head else param(shape, axes, fan_in),
    )


def declare_layer(config: ModelConfig) -> Layer:
    """The parameters of one layer."""
    d, f, e = config.d_model, config.d_ff, config.head_dim
    q_out, kv_out = config.n_heads * e, config.n_kv_heads * e

    def bias(width: int, axis: str) -> jax.Array | None:
        return param((width,), (axis,), zeros, "float32") if config.qkv_bias else None

    attn = Attention(
        norm=_norm(d),
        q=param((q_out, d), ("heads", "embed"), fan_in),
        k=param((kv_out, d), ("kv_heads", "embed"), fan_in),
        v=param((kv_out, d), ("kv_heads", "embed"), fan_in),
        o=param((d, q_out), ("embed", "heads"), fan_in),
        q_bias=bias(q_out, "heads"),
        k_bias=bias(kv_out, "kv_heads"),
        v_bias=bias(kv_out, "kv_heads"),
        q_norm=_norm(e) if config.qk_norm else None,
        k_norm=_norm(e) if config.qk_norm else None,
    )
    mlp = Mlp(
        norm=_norm(d),
        gate=param((f, d), ("mlp", "embed"), fan_in),
        up=param((f, d), ("mlp", "embed"), fan_in),
        down=param((d, f), ("embed", "mlp"), fan_in),
    )
    return Layer(attn, mlp)


def _norm(width: int) -> jax.Array:
    return param((width,), (None,), ones, "float32")


def run_layers(
    layers: tuple[Layer, ...],
    h: jax.Array,
    positions: jax.Array,
    kvs: tuple[LayerKV, ...] | None,
    config: ModelConfig,
    deltas: tuple[Deltas, ...] | None = None,
    gates: jax.Array | None = None,
    segments: jax.Array | None = None,
    seats: jax.Array | None = None,
) -> tuple[jax.Array, tuple[LayerKV, ...] | None]:
    """Transformer layers over h [B, T, D] at positions int32 [B, T], operation by operation.

    kvs are the layers' caches (None: a full pass, nothing cached); deltas are per layer the packs' low-rank parts,
    weighed by gates float32 [B, T, P]; segments int32 [B, T] part packed rows of a full pass, see `ops.Rows`;
    seats int32 [B] are those of `Cache`.
    """
    if gates is None:
        gates = jnp.zeros((*h.shape[:2], 0), jnp.float32)
    new_kvs, arrivals = [], few_tokens.no_arrivals(h.shape[0], kvs[0]) if kvs else None
    for i, layer in enumerate(layers):
        kv, own = kvs[i] if kvs is not None else None, deltas[i] if deltas else ()
        h, kv, arrivals = _layer(layer, h, positions, kv, own, gates, segments, seats, arrivals, config)
        new_kvs.append(kv)
    return h, tuple(new_kvs) if kvs is not None else None


@partial(jax.jit, static_argnames="config")  # a jit of its own: the layers are alike, so that it is traced once
def _layer(
    params: Layer,
    h: jax.Array,
    positions: jax.Array,
    kv: LayerKV | None,
    deltas: Deltas,
    gates: jax.Array,
    segments: jax.Array | None,
    seats: jax.Array | None,
    arrivals: jax.Array | None,
    config: ModelConfig,
) -> tuple[jax.Array, LayerKV | None, jax.Array | None]:
    body = partial(block, config=config)
    operands = (params, h, positions, kv, deltas, gates, segments, seats)
    if kv is None:  # a full pass may be differentiated: keep what the maps give, make the cheap rest again
        body = jax.checkpoint(body, policy=jax.checkpoint_policies.save_only_these_names(MAP_OUTPUT))
    elif arrivals is not None and few_tokens.takes(params, h, kv, deltas):
        few = partial(few_tokens.run, config=config)
        return jax.lax.platform_dependent(
            *operands, arrivals, cuda=few, default=lambda *args: (*body(*args[:-1]), args[-1])
        )
    h, kv = body(*operands)
    return h, kv, arrivals


def block(
    params: Layer,
    h: jax.Array,
    positions: jax.Array,
    kv: LayerKV | None,
    deltas: Deltas,
    gates: jax.Array,
    segments: jax.Array | None,
    seats: jax.Array | None,
    config: ModelConfig,
) -> tuple[jax.Array, LayerKV | None]:
    """One layer over h [B, T, D]: attention, then the gated MLP. The arguments are those of `run_layers`, for one layer."""
    with jax.named_scope("attention"):
        mixed, kv = _attention(params.attn, h, positions, kv, deltas, gates, segments, seats, config)
        h = h + mixed
    with jax.named_scope("mlp"):
        return h + _mlp(params.mlp, h, deltas, gates, config), kv


def _attention(
    params: Attention,
    h: jax.Array,
    positions: jax.Array,
    kv: LayerKV | None,
    deltas: Deltas,
    gates: jax.Array,
    segments: jax.Array | None,
    seats: jax.Array | None,
    config: ModelConfig,
) -> tuple[jax.Array, LayerKV | None]:
    x = rms_norm(h, params.norm, config.rms_eps)
    q = _heads(adapted(x, params.q, deltas, "q", gates, params.q_bias), config.n_heads)
    k = _heads(adapted(x, params.k, deltas, "k", gates, params.k_bias), config.n_kv_heads)
    v = _heads(adapted(x, params.v, deltas, "v", gates, params.v_bias), config.n_kv_heads)
    turn = params.turn(config)
    if kv is None:
        mixed = attend(*turned(q, k, positions, turn), v, segments)
    elif gpu.attends(kv.k.shape):
        operands = (q, k, v, positions, kv, seats, turn)
        mixed, kv = jax.lax.platform_dependent(*operands, cuda=place_and_attend, default=_place_and_attend)
    else:
        mixed, kv = _place_and_attend(q, k, v, positions, kv, seats, turn)
    return adapted(mixed, params.o, deltas, "o", gates), kv


def _place_and_attend(
    q: jax.Array, k: jax.Array, v: jax.Array, positions: jax.Array, kv: LayerKV, seats: jax.Array | None, turn: Turn
) -> tuple[jax.Array, LayerKV]:
    """As `ops.place_and_attend`, operation by operation."""
    q, k = turned(q, k, positions, turn)
    kv = append(kv, k, v, positions[:, 0], seats)
    return attend_cached(q, kv, positions, seats), kv


def _mlp(params: Mlp, h: jax.Array, deltas: Deltas, gates: jax.Array, config: ModelConfig) -> jax.Array:
    x = rms_norm(h, params.norm, config.rms_eps)
    gate = adapted(x, params.gate, deltas, "gate", gates)
    up = adapted(x, params.up, deltas, "up", gates)
    return adapted(jax.nn.silu(gate) * up, params.down, deltas, "down", gates)


def _heads(x: jax.Array, n_heads: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], n_heads, -1)  # [B, T, N*E] -> [B, T, N, E]


def embed(params: Base, tokens: jax.Array) -> jax.Array:
    """tokens int32 [B, T] -> h [B, T, D]."""
    return lookup(params.embed, tokens)


def head(params: Base, h: jax.Array, *, config: ModelConfig) -> jax.Array:
    """Final norm and head, tied or not. h [..., D] -> float32 logits [..., V]."""
    with jax.named_scope("head"):
        weight = params.embed if params.head is None else params.head
        rows = h.reshape(-1, h.shape[-1])

        def by_op(rows: jax.Array, weight: jax.Array, norm: jax.Array) -> jax.Array:
            return linear(rms_norm(rows, norm, config.rms_eps), weight)

        if gpu.available() and rows.shape[0] == 1 and few_tokens.fits(weight):
            few = partial(few_tokens.product, eps=config.rms_eps)
            logits = jax.lax.platform_dependent(rows, weight, params.norm, cuda=few, default=by_op)
        else:
            logits = by_op(rows, weight, params.norm)
        return logits.reshape(*h.shape[:-1], -1).astype(jnp.float32)
