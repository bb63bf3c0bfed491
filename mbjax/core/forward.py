"""The forward pass of design section 2: base and packs are merged when it is called.

h      = understand(base, tokens)                    layers [0, tap)
h      = h + sum_p g[b, t, p] * expert_p(h)
h      = fuse(base + sum_p g[b, t, p] * lora_p, h)   layers [tap, L)
logits = head(base, h)
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mbjax.core import fused
from mbjax.core.base import Base, Deltas, Layer, embed, head, run_layers
from mbjax.core.cache import Cache, Layers, StackedKV, write_rows
from mbjax.core.config import ModelConfig
from mbjax.core.expert import run_expert
from mbjax.core.lora import add_gated
from mbjax.core.ops import Rows
from mbjax.core.pack import Pack
from mbjax.core.slots import Slot, as_pack

Packs = tuple[Pack | Slot, ...]


@partial(jax.jit, static_argnames="config")
def forward(
    params: Base,
    packs: Packs,
    gates: jax.Array,
    tokens: jax.Array,
    *,
    config: ModelConfig,
    cache: Cache | None = None,
) -> tuple[jax.Array, Cache | None]:
    """Logits of every position: the reference form, pure, to which all others are checked to be equal.

    Args:
      params: the base.
      packs: the packs in use, P of them; P may be 0.
      gates: float32 [B, T, P], the weight of each pack for each token.
      tokens: int32 [B, T].
      config: the base's configuration, static.
      cache: the positions before these; None for a full pass from position 0.

    Returns:
      float32 logits [B, T, V], and the cache with T more positions (None if none was given).
    """
    h, cache = understand(params, packs, gates, tokens, cache, config=config)
    h, cache = fuse(params, packs, gates, h, cache, config=config)
    if cache is not None:
        cache = advance(cache, tokens.shape[1])
    return head(params, h, config=config), cache


def understand(
    params: Base,
    packs: Packs,
    gates: jax.Array,
    tokens: jax.Array,
    cache: Cache | None,
    *,
    config: ModelConfig,
    rows: Rows | None = None,
) -> tuple[jax.Array, Cache | None]:
    """Layers `[0, tap)`: tokens int32 [B, T] -> the tap state h [B, T, D].

    Packs made here have no part in it; an imported adapter may. `rows` parts packed rows of a full pass.
    """
    with jax.named_scope("understand"):
        h = embed(params, tokens)
        return _run(params, packs, gates, h, cache, config, range(config.tap), rows)


def fuse(
    params: Base,
    packs: Packs,
    gates: jax.Array,
    h: jax.Array,
    cache: Cache | None,
    *,
    config: ModelConfig,
    rows: Rows | None = None,
) -> tuple[jax.Array, Cache | None]:
    """The packs' experts and layers `[tap, L)`: h [B, T, D] -> h [B, T, D]; the tap states are kept where the cache
    does so. The length does not move: see `advance`."""
    if cache is not None and cache.tap is not None:
        kept = write_rows(cache.tap, h.astype(cache.tap.dtype), cache.starts, cache.seats, axis=0)
        cache = dataclasses.replace(cache, tap=kept)
    h, cache = _experts(packs, gates, h, cache, rows)
    with jax.named_scope("fuse"):
        return _run(params, packs, gates, h, cache, config, range(config.tap, config.n_layers), rows)


def advance(cache: Cache, n_tokens: jax.Array | int) -> Cache:
    """The cache after `n_tokens` (int or int32 [B]) of the positions just written are declared valid."""
    if cache.seats is None:
        return dataclasses.replace(cache, length=cache.length + n_tokens)
    return dataclasses.replace(cache, length=cache.length.at[cache.seats].add(n_tokens))


def catch_up(packs: Packs, p: int, cache: Cache) -> Cache:
    """Fills the KV of pack p's expert from the tap states kept: the conversation as it would have read it."""
    expert = as_pack(packs[p]).expert
    if expert is None:
        return cache
    if cache.tap is None:
        raise ValueError("the cache keeps no tap states; make it with the packs given")
    n_batch, capacity = cache.tap.shape[:2]
    positions = jnp.broadcast_to(jnp.arange(capacity, dtype=jnp.int32)[None, :], (n_batch, capacity))
    _, kv = _expert(packs[p], cache.tap, positions, cache.experts[p], None, None)
    return _with_expert(cache, p, kv)


def _experts(
    packs: Packs, gates: jax.Array, h: jax.Array, cache: Cache | None, rows: Rows | None
) -> tuple[jax.Array, Cache | None]:
    """h plus what the experts add; all of them read the same h."""
    positions, segments = _places(h, cache, rows)
    terms = []
    for p, pack in enumerate(packs):
        if as_pack(pack).expert is not None:
            own, seats = (None, None) if cache is None else (cache.experts[p], cache.seats)
            term, kv = _expert(pack, h, positions, own, segments, seats)
            terms.append((gates[..., p, None], term))
            cache = cache if cache is None else _with_expert(cache, p, kv)
    return add_gated(h, terms), cache


def _expert(
    pack: Any,
    h: jax.Array,
    positions: jax.Array,
    kvs: Any,
    segments: jax.Array | None,
    seats: jax.Array | None,
) -> tuple[jax.Array, Layers | None]:
    """What a pack's expert adds to h [B, T, D], before its gate."""
    expert = as_pack(pack).expert
    assert expert is not None

    def run(x: jax.Array) -> tuple[jax.Array, Layers | None]:
        if fused.takes_expert(pack, kvs):
            return fused.run_expert(pack, x, positions, kvs, expert.config, seats)
        return _op_by_op(expert.layers, x, positions, kvs, expert.config, None, None, segments, seats)

    return run_expert(expert, h, run)


def _run(
    params: Base,
    packs: Packs,
    gates: jax.Array,
    h: jax.Array,
    cache: Cache | None,
    config: ModelConfig,
    which: range,
    rows: Rows | None,
) -> tuple[jax.Array, Cache | None]:
    """The base's layers `which` with the packs' deltas."""
    start, stop = which.start, which.stop
    layers: Any = params.layers[start:stop]
    kvs: Any = cache.part(start, stop) if cache is not None else None
    positions, segments = _places(h, cache, rows)
    if fused.takes(layers, kvs, packs):
        h, kvs = fused.run(layers, h, positions, kvs, config, packs, gates, cache.seats if cache is not None else None)
    else:
        opened = [as_pack(pack).lora for pack in packs]
        deltas: tuple[Deltas, ...] = tuple(tuple(lora and lora.layers[i] for lora in opened) for i in which)
        layers = layers.opened() if isinstance(layers, fused.Bundle) else layers
        seats = cache.seats if cache is not None else None
        h, kvs = _op_by_op(layers, h, positions, kvs, config, deltas, gates, segments, seats)
    return h, None if cache is None or kvs is None else cache.with_part(start, kvs)


def _op_by_op(
    layers: tuple[Layer, ...], h: jax.Array, positions: jax.Array, kvs: Layers | None, *rest: Any
) -> tuple[jax.Array, Layers | None]:
    """`run_layers` over caches of either form."""
    if not isinstance(kvs, StackedKV):
        return run_layers(layers, h, positions, kvs, *rest)
    h, new = run_layers(layers, h, positions, kvs.unstacked(), *rest)
    assert new is not None
    return h, kvs.holding(new)


def _places(h: jax.Array, cache: Cache | None, rows: Rows | None) -> tuple[jax.Array, jax.Array | None]:
    """Positions int32 [B, T] (those of the rows, or what follows the cache, or from 0), and the segments if any."""
    if rows is not None:
        return rows.positions, rows.segments
    steps = jnp.arange(h.shape[1], dtype=jnp.int32)[None, :]
    return (jnp.broadcast_to(steps, h.shape[:2]) if cache is None else cache.starts[:, None] + steps), None


def _with_expert(cache: Cache, p: int, kv: Layers | None) -> Cache:
    return dataclasses.replace(cache, experts=(*cache.experts[:p], kv, *cache.experts[p + 1 :]))
