"""The `expert` part of a pack: an independent small transformer between understanding and fusion.

    expert(h) = out(layers(in(h)))

It reads the whole conversation whatever its gates; a gate weighs only what it adds. `out` starts at zero.
"""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from mbjax.core.base import Base, Layer, declare_layer
from mbjax.core.cache import Layers
from mbjax.core.config import ModelConfig
from mbjax.core.ops import linear, rms_norm
from mbjax.core.param import fan_in, ones, param, zeros


@flax.struct.dataclass
class Expert:
    into: jax.Array  # [De, D]
    layers: tuple[Layer, ...]  # of width De, with KV of their own
    norm: jax.Array  # [De]
    out: jax.Array  # [D, De]
    config: ModelConfig = flax.struct.field(pytree_node=False)  # the shape of `layers`


def expert_config(base: ModelConfig, n_layers: int, d_model: int | None = None, d_ff: int | None = None) -> ModelConfig:
    """The shape of an expert for a base: its own depth and width, the base's heads, rotation and norms."""
    return dataclasses.replace(base, n_layers=n_layers, d_model=d_model or base.d_model, d_ff=d_ff or base.d_ff, tap=0)


def declare_expert(base: ModelConfig, config: ModelConfig) -> Expert:
    """An `expert` part as a tree of `Param`. Of the base's width it reads h as it is: `into` starts as the identity."""

    def start(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return jnp.eye(*shape, dtype=dtype) if shape[0] == shape[1] else fan_in(key, shape, dtype)

    return Expert(
        into=param((config.d_model, base.d_model), (None, "embed"), start),
        layers=tuple(declare_layer(config) for _ in range(config.n_layers)),
        norm=param((config.d_model,), (None,), ones, "float32"),
        out=param((base.d_model, config.d_model), ("embed", None), zeros),
        config=config,
    )


def copy_layers(expert: Expert, base: Base, start: int) -> Expert:
    """The expert with its layers started as copies of the base's own from `start` onwards (equal shapes needed)."""
    copies = base.layers[start : start + len(expert.layers)]
    mine, theirs = (jax.tree.map(jnp.shape, layers) for layers in (expert.layers, copies))
    if mine != theirs:
        raise ValueError(f"the base's layers from {start} on do not have the expert's shapes; use the base's widths")
    return dataclasses.replace(expert, layers=copies)


def run_expert(
    expert: Expert, h: jax.Array, run: Callable[[jax.Array], tuple[jax.Array, Layers | None]]
) -> tuple[jax.Array, Layers | None]:
    """What the expert would add, before its gate: h [B, T, D] at the tap -> [B, T, D], and its caches.

    `run` takes [B, T, De] through its layers, see `forward`.
    """
    with jax.named_scope("expert"):
        x, kv = run(linear(h, expert.into))
        return linear(rms_norm(x, expert.norm, expert.config.rms_eps), expert.out), kv
