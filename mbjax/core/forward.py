"""The forward pass of design section 2: base and packs are merged when it is called.

    h      = understand(base, tokens)
    logits = head(base, fuse(base, h))
"""

from functools import partial
from typing import Any

import jax

from mbjax.core.base import Base, advance, fuse, head, understand
from mbjax.core.cache import Cache
from mbjax.core.config import ModelConfig


@partial(jax.jit, static_argnames="config")
def forward(
    params: Base,
    packs: tuple[Any, ...],
    gates: jax.Array,
    tokens: jax.Array,
    *,
    config: ModelConfig,
    cache: Cache | None = None,
) -> tuple[jax.Array, Cache | None]:
    """Logits of every position: the reference form, pure, of which all others are checked to be equal.

    Args:
      params: the base.
      packs: the packs in use, P of them.
      gates: float32 [B, T, P], the weight of each pack for each token.
      tokens: int32 [B, T].
      config: the base's configuration, static.
      cache: the positions before these; None for a full pass from position 0.

    Returns:
      float32 logits [B, T, V], and the cache with T more positions (None if none was given).
    """
    if packs or gates.shape[-1]:
        raise NotImplementedError
    h, cache = understand(params, tokens, cache, config=config)
    h, cache = fuse(params, h, cache, config=config)
    if cache is not None:
        cache = advance(cache, tokens.shape[1])
    return head(params, h, config=config), cache
