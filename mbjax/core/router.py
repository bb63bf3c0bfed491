"""The router: which packs a prompt calls for, from the base's own state at the tap (design section 3).

The states of the prompt's tokens are averaged, then whitened into the routing space; each pack's own key scores the
result against the background that all packs share. No score depends on another pack.

Axis letters: B lanes, T tokens, D model width, W width of the routing space, P packs.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import flax.struct
import jax
import jax.numpy as jnp

from mbjax.core.base import Base, head
from mbjax.core.cache import Cache, Layers
from mbjax.core.config import ModelConfig
from mbjax.core.forward import fuse, understand
from mbjax.core.ops import Rows
from mbjax.core.pack import Pack

MAX_ACTIVE = 2  # packs that one prompt may use
GATE_RULES = ("one", "root", "share")
GATE_RULE = "root"
RESIDENT = "chat"  # answers where no other pack is called for
FEWEST_TOKENS = 3  # a prompt of fewer fetches no pack: the mean of one or two states may lie anywhere ("Hello" by code)


@flax.struct.dataclass
class Pooled:
    """Running sums over the tokens of a prompt, each token's state scaled to unit mean square before."""

    total: jax.Array  # float32 [B, D]
    weight: jax.Array  # float32 [B]


@flax.struct.dataclass
class Space:
    """The routing space: z = whitening @ (state - mean)."""

    mean: jax.Array  # float32 [D]
    whitening: jax.Array  # float32 [W, D]


@flax.struct.dataclass
class Key:
    """What one pack knows of the prompts that call for it: a linear classifier, in the routing space, of its own
    prompts against the background. Its logit is calibrated."""

    direction: jax.Array  # float32 [W]
    bias: jax.Array  # float32 [1]


_SURE = 12.0  # largest logit: beyond it float32 probabilities could not be told apart


def empty_pool(n_lanes: int, width: int) -> Pooled:
    return Pooled(jnp.zeros((n_lanes, width), jnp.float32), jnp.zeros((n_lanes,), jnp.float32))


def add_to_pool(pooled: Pooled, h: jax.Array, weights: jax.Array) -> Pooled:
    """Adds tap states h [B, T, D] with weights float32 [B, T]. A few dimensions of a raw state are hundreds of times
    larger than the rest and would drown it, hence the scaling of each token."""
    unit = jnp.where(weights[..., None] > 0, unit_states(h), 0.0)
    return Pooled(pooled.total + jnp.einsum("bt,btd->bd", weights, unit), pooled.weight + weights.sum(axis=-1))


def unit_states(h: jax.Array) -> jax.Array:
    """Each token's state [..., D] scaled to unit mean square, float32."""
    h32 = h.astype(jnp.float32)
    return h32 * jax.lax.rsqrt(jnp.mean(jnp.square(h32), axis=-1, keepdims=True) + 1e-6)


def to_space(space: Space, pooled: Pooled) -> jax.Array:
    """Pooled states -> float32 [B, W]."""
    state = pooled.total / jnp.maximum(pooled.weight, 1e-6)[:, None]
    return jnp.einsum("bd,wd->bw", state - space.mean[None, :], space.whitening)


def score(key: Key, z: jax.Array) -> jax.Array:
    """Calibrated probability float32 [B] that a prompt at z float32 [B, W] calls for the key's pack."""
    logit = jnp.einsum("bw,w->b", z, key.direction) + key.bias[0]
    return jax.nn.sigmoid(jnp.clip(logit, -_SURE, _SURE))


@jax.jit
def score_pooled(space: Space, key: Key, pooled: Pooled) -> jax.Array:
    """`score` of pooled states: the one program that every pack's scores come from. A prompt of which nothing was
    pooled calls for no pack."""
    return jnp.where(pooled.weight > 0, score(key, to_space(space, pooled)), 0.0)


@partial(jax.jit, static_argnames="config")
def row_states(params: Base, tokens: jax.Array, rows: Rows, *, config: ModelConfig) -> jax.Array:
    """`unit_states` of packed rows of prompts, tokens int32 [N, T] -> float32 [N, T, D]."""
    gates = jnp.zeros((*tokens.shape, 0), jnp.float32)
    return unit_states(understand(params, (), gates, tokens, None, config=config, rows=rows)[0])


def understand_chunk(
    params: Base,
    layers: Layers,
    start: jax.Array,
    seats: jax.Array,
    tokens: jax.Array,
    weights: jax.Array,
    pooled: Pooled,
    *,
    config: ModelConfig,
    lanes: int,
) -> tuple[jax.Array, Layers, Pooled]:
    """The first phase of prefill for one chunk: tokens int32 [B, T], from position start int32 [B] on.

    `layers` are those of a cache of so many lanes, of which seats int32 [B] are the rows'. Returns the tap states
    [B, T, D], the layers after the chunk, and what the router has read so far.
    """
    gates = jnp.zeros((*tokens.shape, 0), jnp.float32)
    length = jnp.zeros((lanes,), jnp.int32).at[seats].set(start)  # other lanes stand at rest
    h, cache = understand(params, (), gates, tokens, Cache(layers, length, seats=seats), config=config)
    assert cache is not None
    return h, cache.layers, add_to_pool(pooled, h, weights)


def choose_packs(
    scores: Mapping[str, float], thresholds: Mapping[str, float], n_read: float, most: int = MAX_ACTIVE
) -> list[str]:
    """Ids of the packs whose score reaches their own threshold, the best `most` of them, equal scores by id.

    The resident chat pack gives way to any other: it is for prompts that call for nothing in particular, and the only
    one for those of which the router has read fewer than `FEWEST_TOKENS` (`n_read`, the sum of their weights).
    """
    called = [pack for pack, score in scores.items() if score >= thresholds[pack]]
    if n_read < FEWEST_TOKENS:
        return [pack for pack in called if pack == RESIDENT]
    special = [pack for pack in called if pack != RESIDENT] or called
    return sorted(special, key=lambda pack: (-scores[pack], pack))[:most]


def gates_for(scores: Sequence[float | None], rule: str = GATE_RULE) -> list[float]:
    """The gates of packs that work together; one alone has 1. A score of None is that of a pack that was forced.

    Rules: `one` gives each 1, `root` 1/sqrt(n), `share` its share of the summed scores (equal where any is forced).
    """
    n = len(scores)
    if rule not in GATE_RULES:
        raise ValueError(f"gate rule '{rule}' is not one of {', '.join(GATE_RULES)}")
    if rule == "one" or n <= 1:
        return [1.0] * n
    known = [score for score in scores if score is not None]
    if rule == "root" or len(known) < n:
        return [1 / n if rule == "share" else 1 / math.sqrt(n)] * n
    return [score / sum(known) for score in known]


@partial(jax.jit, static_argnames=("config", "rule", "most"))
def forward_routed(
    params: Base,
    space: Space,
    keys: tuple[Key, ...],
    thresholds: jax.Array,
    packs: tuple[Pack, ...],
    tokens: jax.Array,
    weights: jax.Array,
    *,
    config: ModelConfig,
    rule: str = GATE_RULE,
    most: int = MAX_ACTIVE,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The router-gated full pass over candidate packs, in one program: the same logits as the engine's two phases.

    keys and packs, P of each, are in the order of their ids and hold no resident pack; thresholds float32 [P]; tokens
    int32 [B, T] with the router's weights float32 [B, T]. Returns float32 logits [B, T, V], gates and scores [B, P].
    """
    none = jnp.zeros((*tokens.shape, 0), jnp.float32)
    h, _ = understand(params, (), none, tokens, None, config=config)
    z = to_space(space, add_to_pool(empty_pool(tokens.shape[0], config.d_model), h, weights))
    scores = jnp.stack([score(key, z) for key in keys], axis=-1)
    gates = gate_matrix(scores, thresholds, weights.sum(axis=-1), rule=rule, most=most)
    per_token = jnp.broadcast_to(gates[:, None, :], (*tokens.shape, len(packs)))
    h, _ = fuse(params, packs, per_token, h, None, config=config)
    return head(params, h, config=config), gates, scores


def gate_matrix(scores: jax.Array, thresholds: jax.Array, n_read: jax.Array, *, rule: str, most: int) -> jax.Array:
    """`choose_packs` and `gates_for` as one pure step: scores float32 [B, P] in the order of ids, none of them the
    resident's, and n_read float32 [B] -> gates [B, P]."""
    called = (scores >= thresholds[None, :]) & (n_read >= FEWEST_TOKENS)[:, None]
    ranked = jnp.argsort(jnp.where(called, -scores, jnp.inf), axis=-1, stable=True)
    rank = jnp.argsort(ranked, axis=-1, stable=True)
    chosen = called & (rank < most)
    n = jnp.maximum(chosen.sum(axis=-1, keepdims=True), 1).astype(jnp.float32)
    kept = jnp.where(chosen, scores, 0.0)
    gates = {
        "one": jnp.ones_like(scores),
        "root": jnp.broadcast_to(jax.lax.rsqrt(n), scores.shape),
        "share": kept / jnp.maximum(kept.sum(axis=-1, keepdims=True), 1e-30),
    }[rule]
    return jnp.where(chosen, gates, 0.0)
