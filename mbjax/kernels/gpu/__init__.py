"""Kernels for graphics cards, written in Pallas and compiled by Triton; `core.few_tokens` makes a layer of them.

Their modules import Pallas, which takes half a second: import them only where `available` says so.
"""

import jax
import jax.numpy as jnp


def available() -> bool:
    """Whether programs are compiled for such a card here."""
    return jax.default_backend() == "gpu"


HEAD_DIMS = (16, 32, 64, 128, 256)
POSITIONS = 64  # that attention reads at a time: a cache's capacity is a multiple of it, or the kernel is not used


def attends(cache_shape: tuple[int, ...]) -> bool:
    """Whether attention over a cache [N, K, S, E] has a kernel here."""
    return available() and cache_shape[3] in HEAD_DIMS and cache_shape[2] % POSITIONS == 0


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """A product of matrices within a kernel: sums in float32, and float32 as it is, not rounded to tf32."""
    exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=exact, preferred_element_type=jnp.float32)
