"""The `lora` part of a pack: low-rank deltas on the base's linear maps (Hu et al. 2021), weighed per token.

Axis letters: B batch, T tokens, P packs, R rank.
"""

from collections.abc import Iterable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from mbjax.core.config import ModelConfig
from mbjax.core.ops import linear
from mbjax.core.param import fan_in, param, zeros
from mbjax.kernels.part import Part

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
MAP_OUTPUT = "map output"  # the name by which a backward pass may keep what an adapted map gives


@flax.struct.dataclass
class LowRank:
    """The delta scale * b @ a of one linear map [out, in]. b starts at zero: a new pack is exactly the identity.

    Of a pack in a slot all three are a `Part`.
    """

    a: jax.Array  # [R, in]
    b: jax.Array  # [out, R]
    scale: jax.Array  # float32 [], alpha / rank

    def opened(self) -> "LowRank":
        """As arrays."""
        if not isinstance(self.a, Part):
            return self
        parts: Any = vars(self)
        return LowRank(**{name: part.opened() for name, part in parts.items()})


@flax.struct.dataclass
class LayerLora:
    """The deltas of one layer; None where a map is left alone."""

    q: LowRank | None = None
    k: LowRank | None = None
    v: LowRank | None = None
    o: LowRank | None = None
    gate: LowRank | None = None
    up: LowRank | None = None
    down: LowRank | None = None


@flax.struct.dataclass
class Lora:
    """The deltas of all layers of a base; None where a layer is left alone."""

    layers: tuple[LayerLora | None, ...]  # L of them


def declare_lora(
    config: ModelConfig, rank: int, alpha: float, targets: Iterable[str] = TARGETS, layers: Iterable[int] | None = None
) -> Lora:
    """A `lora` part as a tree of `Param`; by default on all maps of the fusion layers `[tap, L)`."""
    shapes = map_shapes(config)
    touched = set(range(config.tap, config.n_layers) if layers is None else layers)

    def low_rank(target: str) -> LowRank:
        n_out, n_in = shapes[target]
        return LowRank(
            a=param((rank, n_in), ("rank", None), fan_in),
            b=param((n_out, rank), (None, "rank"), zeros),
            scale=param((), (), lambda _, shape, dtype: jnp.full(shape, alpha / rank, dtype), "float32"),
        )

    wanted = tuple(targets)
    return Lora(
        tuple(
            LayerLora(**{target: low_rank(target) for target in wanted}) if i in touched else None
            for i in range(config.n_layers)
        )
    )


def map_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """[out, in] of each linear map of a layer."""
    d, f = config.d_model, config.d_ff
    q_out, kv_out = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {
        "q": (q_out, d),
        "k": (kv_out, d),
        "v": (kv_out, d),
        "o": (d, q_out),
        "gate": (f, d),
        "up": (f, d),
        "down": (d, f),
    }


def adapted(
    x: jax.Array,
    weight: jax.Array,
    deltas: tuple[LayerLora | None, ...],
    target: str,
    gates: jax.Array,
    bias: jax.Array | None = None,
) -> jax.Array:
    """x [B, T, in] through weight [out, in] and, token by token, the gated deltas of the packs on `target`.

    gates float32 [B, T, P]. Where none is above zero the base's value passes untouched.
    """
    y = linear(x, weight, bias)
    terms = []
    for p, layer in enumerate(deltas):
        delta: LowRank | None = getattr(layer, target) if layer is not None else None
        if delta is not None:
            delta = delta.opened()
            scale = jax.lax.stop_gradient(delta.scale)  # a setting: its gradient would keep every delta in memory
            low = linear(linear(x, delta.a), delta.b).astype(jnp.float32) * scale
            terms.append((gates[..., p, None], low))
    return checkpoint_name(add_gated(y, terms), MAP_OUTPUT)


def add_gated(y: jax.Array, terms: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """y plus the sum of gate * term. A term is selected by its gate, not multiplied away: a NaN behind a gate of
    zero reaches nobody. Gates float32 [B, T, 1], terms of y's shape."""
    if not terms:
        return y
    total = sum(jnp.where(gate > 0, gate * term.astype(jnp.float32), 0.0) for gate, term in terms)
    chosen = jnp.any(jnp.concatenate([gate for gate, _ in terms], axis=-1) > 0, axis=-1, keepdims=True)
    return jnp.where(chosen, (y.astype(jnp.float32) + total).astype(y.dtype), y)


def merge(weight: jax.Array, delta: LowRank, gate: float = 1.0) -> jax.Array:
    """The weight with a delta folded in: the named reference that `adapted` is tested against."""
    return weight + gate * delta.scale * jnp.einsum("or,ri->oi", delta.b, delta.a)
