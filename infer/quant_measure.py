"""How far a quantised base's predictions lie from the float32 base's, token by token.

Letters: T tokens, D model width, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.base import Base, head
from mbjax.core.config import ModelConfig
from mbjax.core.forward import fuse, understand

_BLOCK = 128  # positions whose logits, T * V floats of both bases, are held at once


@dataclasses.dataclass(frozen=True)
class Error:
    """Of one base on one domain or on all. kl: mean KL(float32 || this) in nats; same_top: share of positions with the
    same most probable token; bits_per_byte: of the text itself."""

    tokens: int
    kl: float
    same_top: float
    bits_per_byte: float


class Reference:
    """A float32 base and its hidden states on the rows of each domain."""

    def __init__(self, params: Base, config: ModelConfig, rows: dict[str, np.ndarray], n_bytes: dict[str, int]) -> None:
        self.params, self.config, self.rows, self.n_bytes = params, config, rows, n_bytes
        self._hidden = {name: _states(params, ids, config) for name, ids in rows.items()}

    def compare(self, params: Base, progress: Callable[[str], None] = lambda _: None) -> dict[str, Error]:
        """`params` against the reference, domain by domain, and on all of them under `all`."""
        found: dict[str, Error] = {}
        sums: dict[str, np.ndarray] = {}
        for name, ids in self.rows.items():
            progress(name)
            parts = [
                np.stack([np.asarray(x, np.float64) for x in self._row(params, row, known)], axis=-1)
                for row, known in zip(ids, self._hidden[name], strict=True)
            ]
            sums[name] = np.concatenate(parts)
            found[name] = _error(sums[name], self.n_bytes[name])
        return found | {"all": _error(np.concatenate(list(sums.values())), sum(self.n_bytes.values()))}

    def _row(self, params: Base, row: np.ndarray, known: jax.Array) -> tuple[jax.Array, ...]:
        own = params is self.params
        h = known if own else _hidden(params, jnp.asarray(row[None, :-1]), config=self.config)[0]
        return _compare(self.params, known, params, h, jnp.asarray(row[1:]), config=self.config)


def text_bytes(decode: Callable[[list[int]], str], rows: dict[str, np.ndarray]) -> dict[str, int]:
    """UTF-8 bytes of the tokens that are predicted, by domain."""
    return {name: sum(len(decode(row[1:].tolist()).encode()) for row in ids) for name, ids in rows.items()}


def _states(params: Base, ids: np.ndarray, config: ModelConfig) -> list[jax.Array]:
    return [_hidden(params, jnp.asarray(row[None, :-1]), config=config)[0] for row in ids]


@partial(jax.jit, static_argnames="config")
def _hidden(params: Base, tokens: jax.Array, *, config: ModelConfig) -> jax.Array:
    """tokens int32 [1, T] -> the final hidden states [1, T, D]."""
    gates = jnp.zeros((*tokens.shape, 0), jnp.float32)
    h, _ = understand(params, (), gates, tokens, None, config=config)
    return fuse(params, (), gates, h, None, config=config)[0]


@partial(jax.jit, static_argnames="config")
def _compare(
    known: Base, known_h: jax.Array, params: Base, h: jax.Array, targets: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """States [T, D] of both and targets int32 [T] -> per position: KL, same top token, nats of the target."""
    block = math.gcd(h.shape[0], _BLOCK)

    def one(part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        p = jax.nn.log_softmax(head(known, part[0], config=config), axis=-1)
        q = jax.nn.log_softmax(head(params, part[1], config=config), axis=-1)
        nats = -jnp.take_along_axis(q, part[2][:, None], axis=-1)[:, 0]
        return (jnp.exp(p) * (p - q)).sum(axis=-1), p.argmax(axis=-1) == q.argmax(axis=-1), nats

    split = tuple(x.reshape(-1, block, *x.shape[1:]) for x in (known_h, h, targets))
    return jax.tree.map(lambda x: x.reshape(-1), jax.lax.map(one, split))


def _error(per_token: np.ndarray, n_bytes: int) -> Error:
    kl, same, nats = per_token.T
    return Error(len(per_token), float(kl.mean()), float(same.mean()), float(nats.sum() / math.log(2) / n_bytes))
