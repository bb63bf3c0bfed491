"""The log-probability that a base gives to each token of a text.

Axis letters: B batch, T tokens, D model width, V vocabulary.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from mbjax.core.base import Base, head
from mbjax.core.config import ModelConfig
from mbjax.core.forward import fuse, understand
from mbjax.core.pack import Mix

_BLOCK = 64  # positions whose logits are held at once: all of them would be B * T * V floats


@partial(jax.jit, static_argnames="config")
def token_logprobs(params: Base, mix: Mix, tokens: jax.Array, targets: jax.Array, *, config: ModelConfig) -> jax.Array:
    """Natural log-probability of `targets[b, t]` after `tokens[b, :t + 1]`; both int32 [B, T] -> float32 [B, T].

    Padding on the right changes nothing to its left.
    """
    gates = mix.per_token(tokens.shape[1])
    h, _ = understand(params, mix.packs, gates, tokens, None, config=config)
    h, _ = fuse(params, mix.packs, gates, h, None, config=config)
    n_batch, n_tokens, width = h.shape
    block = math.gcd(n_tokens, _BLOCK)
    h_blocks = h.reshape(n_batch, n_tokens // block, block, width).swapaxes(0, 1)
    target_blocks = targets.reshape(n_batch, n_tokens // block, block).swapaxes(0, 1)

    def score(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        logits = head(params, part[0], config=config)
        chosen = jnp.take_along_axis(logits, part[1][..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    return jax.lax.map(score, (h_blocks, target_blocks)).swapaxes(0, 1).reshape(n_batch, n_tokens)
