"""Choosing the next token: what a request asks for, and the pure function that does it for B lanes at once.

Axis letters: B lanes, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mbjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one request samples; the default is greedy.

    Applied in this order, as in transformers: repetition penalty, temperature, top-k, top-p, min-p. `top_k` 0,
    `top_p` 1 and `min_p` 0 mean no cut. Raises InputError for values outside their range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 (greedy) or more")
        _require(self.top_k >= 0, "top_k", self.top_k, "0 (no cut) or more")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(0 <= self.min_p < 1, "min_p", self.min_p, "at least 0 and below 1")
        _require(0 < self.repetition_penalty < math.inf, "repetition_penalty", self.repetition_penalty, "above 0")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "between 0 and 4294967295")


def _require(holds: bool, name: str, value: float, allowed: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value}; it must be {allowed}")


@flax.struct.dataclass
class Lanes:
    """The sampling settings of B lanes as arrays, so that no setting compiles another program."""

    temperature: jax.Array  # float32 [B]
    top_k: jax.Array  # int32 [B], V for no cut
    top_p: jax.Array  # float32 [B]
    min_p: jax.Array  # float32 [B]
    penalty: jax.Array  # float32 [B]
    seed: jax.Array  # uint32 [B]
    seen: jax.Array  # bool [B, V], tokens of the context, which the penalty bears on


def lanes_of(requests: list[tuple[Sampling, list[int]]], vocab_size: int) -> Lanes:
    """The lanes of (settings, prompt token ids) pairs."""
    seen = np.zeros((len(requests), vocab_size), bool)
    for lane, (_, prompt) in enumerate(requests):
        seen[lane, prompt] = True
    settings = [settings for settings, _ in requests]

    def column(dtype: str, values: list[float]) -> jax.Array:
        return jax.device_put(np.asarray(values, dtype))  # which compiles nothing, whatever the shape

    return Lanes(
        temperature=column("float32", [s.temperature for s in settings]),
        top_k=column("int32", [min(s.top_k or vocab_size, vocab_size) for s in settings]),
        top_p=column("float32", [s.top_p for s in settings]),
        min_p=column("float32", [s.min_p for s in settings]),
        penalty=column("float32", [s.repetition_penalty for s in settings]),
        seed=column("uint32", [s.seed for s in settings]),
        seen=jax.device_put(seen),
    )


def sample(logits: jax.Array, lanes: Lanes, position: jax.Array) -> tuple[jax.Array, Lanes]:
    """Next token of each lane: float32 logits [B, V], int32 position [B] -> int32 [B], and the lanes that saw it.

    A lane's random numbers come from its own seed and position: neighbours do not matter.
    """
    logits = _penalised(logits, lanes)
    token = jax.lax.cond(jnp.any(lanes.temperature > 0), _sampled, _greedy, logits, lanes, position)
    rows = jnp.arange(token.shape[0], dtype=jnp.int32)
    return token, dataclasses.replace(lanes, seen=lanes.seen.at[rows, token].set(True))


def first_largest(x: jax.Array) -> jax.Array:
    """Where the largest of each row [..., V] is first: int32 [...]; the last place where a row holds a NaN.

    XLA finds the argmax on a CPU value by value; two reductions that it can do in vectors take a fifth of the time.
    """

    def twice(x: jax.Array) -> jax.Array:
        places = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
        return jnp.min(jnp.where(x == jnp.max(x, axis=-1, keepdims=True), places, x.shape[-1] - 1), axis=-1)

    return jax.lax.platform_dependent(x, cpu=twice, default=lambda x: jnp.argmax(x, axis=-1).astype(jnp.int32))


def _greedy(logits: jax.Array, lanes: Lanes, position: jax.Array) -> jax.Array:
    return first_largest(logits)


def _sampled(logits: jax.Array, lanes: Lanes, position: jax.Array) -> jax.Array:
    """Gumbel-max over what the cuts leave; lanes with temperature 0 stay greedy."""
    hot = lanes.temperature > 0
    kept = _cut(logits / jnp.where(hot, lanes.temperature, 1.0)[:, None], lanes)

    def noise(seed: jax.Array, at: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), at), logits.shape[-1:], jnp.float32)

    drawn = first_largest(kept + jax.vmap(noise)(lanes.seed, position))
    return jnp.where(hot, drawn, _greedy(logits, lanes, position))


def _penalised(logits: jax.Array, lanes: Lanes) -> jax.Array:
    """Seen tokens lose: positive logits divided, negative ones multiplied by the penalty (CTRL, section 4.1)."""
    by = lanes.penalty[:, None]
    return jnp.where(lanes.seen, jnp.where(logits > 0, logits / by, logits * by), logits)


def _cut(logits: jax.Array, lanes: Lanes) -> jax.Array:
    """Logits below the thresholds of top-k, top-p and min-p become -inf."""
    order = _ordered(logits)

    def at_least_k(threshold: jax.Array) -> jax.Array:
        return jnp.sum(order >= threshold[:, None], axis=-1) >= lanes.top_k

    logits = jnp.where(order >= _largest(at_least_k, order)[:, None], logits, -jnp.inf)
    probs = jax.nn.softmax(logits, axis=-1)

    def enough_mass(threshold: jax.Array) -> jax.Array:
        mass = jnp.sum(jnp.where(order >= threshold[:, None], probs, 0.0), axis=-1)
        return mass >= jnp.minimum(lanes.top_p, 1 - 1e-6)  # rounding may keep the whole mass just below 1

    logits = jnp.where(order >= _largest(enough_mass, order)[:, None], logits, -jnp.inf)
    floor = logits.max(axis=-1, keepdims=True) + jnp.log(lanes.min_p)[:, None]
    return jnp.where(logits >= floor, logits, -jnp.inf)


def _ordered(x: jax.Array) -> jax.Array:
    """uint32 in the order of the floats, so that a threshold is found bit by bit, without sorting V values."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(0x80000000)
    return jnp.where(bits & sign != 0, ~bits, bits | sign)


def _largest(holds: Callable[[jax.Array], jax.Array], order: jax.Array) -> jax.Array:
    """The largest threshold uint32 [B] at which `holds` is still true; it is true at 0 and once false stays so."""

    def settle(i: jax.Array, threshold: jax.Array) -> jax.Array:
        candidate = threshold | (jnp.uint32(0x80000000) >> i.astype(jnp.uint32))
        return jnp.where(holds(candidate), candidate, threshold)

    # With a loop in it, an accelerator's branch is taken by the host, who waits for its flag.
    unroll = jax.default_backend() != "cpu"
    return jax.lax.fori_loop(0, 32, settle, jnp.zeros(order.shape[:1], jnp.uint32), unroll=unroll)
