"""The first phase of taking in a prompt: the understanding layers, once for every choice of packs."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.base import Base
from mbjax.core.cache import Cache
from mbjax.core.config import ModelConfig
from mbjax.core.decode import chunk_sizes
from mbjax.core.router import Pooled, empty_pool, understand_chunk


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Tap states [B, size, D] of one chunk, and how many tokens of each lane are no padding, int32 [B]."""

    h: jax.Array
    n_valid: jax.Array


@dataclasses.dataclass(frozen=True)
class Understood:
    """A prompt at the tap: its chunks, the cached layers (those beyond the tap still to be filled), and what the router
    reads."""

    chunks: list[Chunk]
    layers: Any
    pooled: Pooled


class Understanding:
    """The compiled programs of that phase for a fixed batch, one per chunk size; no pack has a part in them."""

    def __init__(self, params: Any, config: ModelConfig, cache: Any) -> None:
        """`params` and `cache` may be arrays or shapes."""
        self.config, self.batch = config, cache.length.shape[0]
        self._params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
        self._layers, self._length = cache.layers, cache.length
        self._pooled = jax.eval_shape(partial(empty_pool, self.batch, config.d_model))
        self.compiled: dict[str, jax.stages.Compiled] = {}
        self._taps: dict[int, Any] = {}

    def program(self, size: int) -> jax.stages.Compiled:
        """(params, layers, length [B], tokens [B, size], weights [B, size], n_valid [B], pooled) -> (h [B, size, D],
        layers, length, pooled); the layers are donated."""
        name = f"understand_{size}"
        if name not in self.compiled:
            bound = partial(understand_chunk, config=self.config)
            bound.__name__ = name  # pyright: ignore[reportAttributeAccessIssue] - the name that profiles show
            ints, floats = (jax.ShapeDtypeStruct((self.batch, size), dtype) for dtype in (jnp.int32, jnp.float32))
            args = (self._params, self._layers, self._length, ints, floats, self._length, self._pooled)
            lowered = jax.jit(bound, donate_argnums=(1,)).lower(*args)
            self.compiled[name], self._taps[size] = lowered.compile(), lowered.out_info[0]
        return self.compiled[name]

    def tap_shape(self, size: int) -> Any:
        """Shape and dtype of a chunk's tap states."""
        self.program(size)
        return self._taps[size]

    def run(
        self,
        params: Base,
        layers: Any,
        lanes: Sequence[Sequence[int]],
        weights: Sequence[np.ndarray] | None = None,
    ) -> Understood:
        """Takes in prompts whose chunks are the same, one per lane; only the last chunk is padded, to each lane's own
        length. `weights` are those of `io.prompt.Prompt`; without them nothing is pooled."""
        length, pooled = jnp.asarray(np.zeros(len(lanes), np.int32)), self.empty_pool()
        chunks, at = [], 0
        for size in chunk_sizes(len(lanes[0])):
            tokens, shares = np.zeros((len(lanes), size), np.int32), np.zeros((len(lanes), size), np.float32)
            n_valid = np.zeros(len(lanes), np.int32)
            for lane, ids in enumerate(lanes):
                part = ids[at : at + size]
                tokens[lane, : len(part)], n_valid[lane] = part, len(part)
                if weights is not None:
                    shares[lane, : len(part)] = weights[lane][at : at + size]
            valid = jnp.asarray(n_valid)
            h, layers, length, pooled = self.program(size)(
                params, layers, length, jnp.asarray(tokens), jnp.asarray(shares), valid, pooled
            )
            chunks.append(Chunk(h, valid))
            at += size
        return Understood(chunks, layers, pooled)

    def empty_pool(self) -> Pooled:
        """On the device without compiling anything."""
        return jax.tree.map(lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), self._pooled)


def joined(cache: Cache, layers: Any) -> Cache:
    """The cache with other layers of the base: these are alike whatever packs are in use, so that all share them."""
    return dataclasses.replace(cache, layers=layers)
