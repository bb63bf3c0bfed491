"""The steps of generation, as pure functions: take in part of a prompt, choose a token, do both for one token.

Axis letters: B lanes, T tokens, D model width, V vocabulary.
"""

import jax
import jax.numpy as jnp

from mbjax.core.base import Base, head
from mbjax.core.cache import Cache
from mbjax.core.config import ModelConfig
from mbjax.core.forward import advance, fuse, understand
from mbjax.core.pack import Mix
from mbjax.core.sampling import Lanes, sample

BUCKETS = (32, 128, 512)  # lengths that prefill programs are compiled for


def chunk_sizes(n_tokens: int, buckets: tuple[int, ...] = BUCKETS) -> list[int]:
    """The buckets that a prompt of `n_tokens` is taken in by; the last is padded. They depend on its length alone.

    A bucket is used when the rest fills more than half of it: beyond that, padding costs more than another chunk.
    """
    sizes = []
    while n_tokens > 0:
        fitting = [b for b in buckets if n_tokens > b // 2]
        size = max(fitting, default=buckets[0])
        sizes.append(size)
        n_tokens -= size
    return sizes


def prefill(
    params: Base, mix: Mix, cache: Cache, tokens: jax.Array, n_valid: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, Cache]:
    """Takes in tokens int32 [B, T], of which the first n_valid int32 [B] count; the rest is padding.

    Returns the last valid token's final hidden state [B, D] and the longer cache.
    """
    h, cache = prefill_understand(params, mix, cache, tokens, config=config)
    return prefill_fuse(params, mix, cache, h, n_valid, config=config)


def prefill_understand(
    params: Base, mix: Mix, cache: Cache, tokens: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, Cache]:
    """The first phase of `prefill`: the tap states [B, T, D]. Where no pack in use touches the understanding layers
    it needs none of them, and a router may choose them from what it returns."""
    h, running = understand(params, mix.packs, mix.per_token(tokens.shape[1]), tokens, cache, config=config)
    assert running is not None
    return h, running


def prefill_fuse(
    params: Base, mix: Mix, cache: Cache, h: jax.Array, n_valid: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, Cache]:
    """The second phase of `prefill`: experts and fusion layers over the tap states [B, T, D]."""
    h, running = fuse(params, mix.packs, mix.per_token(h.shape[1]), h, cache, config=config)
    assert running is not None
    last = jnp.take_along_axis(h, (n_valid - 1)[:, None, None], axis=1)[:, 0]
    return last, advance(running, n_valid)


def choose(
    params: Base, h: jax.Array, lanes: Lanes, position: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, Lanes]:
    """The token that follows hidden states h [B, D]; position int32 [B] is where it will stand."""
    return sample(head(params, h, config=config), lanes, position)


def decode(
    params: Base, mix: Mix, cache: Cache, token: jax.Array, lanes: Lanes, *, config: ModelConfig
) -> tuple[jax.Array, Cache, Lanes]:
    """One step: takes in token int32 [B] and chooses the next. One program whatever the prompt."""
    h, cache = prefill(params, mix, cache, token[:, None], jnp.ones_like(token), config=config)
    token, lanes = choose(params, h, lanes, cache.length, config=config)
    return token, cache, lanes
