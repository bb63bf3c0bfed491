"""Cross-entropy over a large vocabulary without ever holding all logits: a stretch of tokens at a time, forwards and
backwards in one pass, because the loss is a sum and its gradient needs nothing from what follows it.

Axis letters: S groups of rows (one per device that holds rows), N rows of a group, T tokens, C chunks, R tokens of a
chunk, D model width, V vocabulary.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def summed_nll(
    h: jax.Array, weight: jax.Array, target: jax.Array, z_weight: float, logit_bytes: int
) -> tuple[jax.Array, jax.Array]:
    """Summed loss and, of that, the summed negative log-likelihood, both float32 in nats.

    h [S, N, T, D]; weight [V, D]; target int32 [S, N, T], -1 where there is none. The loss is the likelihood's plus
    z_weight * logsumexp(logits)^2 (PaLM, section 5). logit_bytes bounds the float32 logits that one group holds at
    once. Only the loss is differentiated: the second value counts as a constant.
    """

    def add(sums: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        _, _, nll, z = _losses(*part, weight)
        return (sums[0] + nll + z_weight * z, sums[1] + nll), None

    zero = jnp.zeros((), jnp.float32)
    return jax.lax.scan(add, (zero, zero), _chunks(h, target, weight.shape[0], logit_bytes))[0]


def _forwards(
    h: jax.Array, weight: jax.Array, target: jax.Array, z_weight: float, logit_bytes: int
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """The same with the gradients: [S, N, T, D] and [V, D], kept in their arguments' dtypes."""

    def add(sums: Any, part: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        x, wanted = part
        logits, top, nll, z = _losses(x, wanted, weight)
        slope = jnp.exp(logits - top[..., None]) * (1 + 2 * z_weight * top)[..., None]
        hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 2) == wanted[..., None]
        slope = jnp.where((wanted >= 0)[..., None], slope - hit.astype(jnp.float32), 0.0).astype(h.dtype)
        d_h = jnp.einsum("srv,vd->srd", slope, weight, preferred_element_type=jnp.float32).astype(h.dtype)
        # every group sums its own: one reduction over the devices at the end, not one a chunk
        d_weight = jnp.einsum("srv,srd->svd", slope, x, preferred_element_type=jnp.float32)
        return (sums[0] + nll + z_weight * z, sums[1] + nll, sums[2] + d_weight), d_h

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, jnp.zeros((h.shape[0], *weight.shape), jnp.float32))
    (total, nll, d_weight), d_h = jax.lax.scan(add, start, _chunks(h, target, weight.shape[0], logit_bytes))
    d_h = d_h.reshape(d_h.shape[0], *h.shape[:2], -1, h.shape[3])  # [C, S, R, D] -> [C, S, N, T / C, D]
    d_h = jnp.moveaxis(d_h, 0, 2).reshape(h.shape)
    return (total, nll), (d_h, d_weight.sum(axis=0).astype(weight.dtype))


def _backwards(
    z_weight: float, logit_bytes: int, gradients: tuple[jax.Array, jax.Array], slopes: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, None]:
    d_h, d_weight = (gradient * slopes[0].astype(gradient.dtype) for gradient in gradients)
    return d_h, d_weight, None


summed_nll.defvjp(_forwards, _backwards)


def _losses(x: jax.Array, target: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Logits [S, R, V], their logsumexp [S, R], and the sums of the likelihood's loss and of logsumexp^2."""
    logits = jnp.einsum("srd,vd->srv", x, weight, preferred_element_type=jnp.float32)
    top = jax.nn.logsumexp(logits, axis=-1)
    counts = target >= 0
    right = jnp.take_along_axis(logits, jnp.maximum(target, 0)[..., None], axis=-1)[..., 0]
    nll = jnp.where(counts, top - right, 0.0).sum()
    return logits, top, nll, jnp.where(counts, jnp.square(top), 0.0).sum()


def _chunks(h: jax.Array, target: jax.Array, n_vocab: int, logit_bytes: int) -> tuple[jax.Array, jax.Array]:
    """Both with a leading axis over C stretches of tokens, of all rows: [C, S, R, D] and [C, S, R]."""
    n_rows, n_tokens = h.shape[1:3]
    wanted = max(1, logit_bytes // (4 * n_rows * n_vocab))
    length = max(d for d in range(1, min(wanted, n_tokens) + 1) if n_tokens % d == 0)

    def split(x: jax.Array) -> jax.Array:
        parts = jnp.moveaxis(x.reshape(*x.shape[:2], n_tokens // length, length, *x.shape[3:]), 2, 0)
        return parts.reshape(*parts.shape[:2], n_rows * length, *x.shape[3:])

    return split(h), split(target)
