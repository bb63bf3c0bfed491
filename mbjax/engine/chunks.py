"""Prompts cut into chunks, each as the one array that a program takes.

Whatever the host hands to a program is a transfer of its own: on an H100 70 us each, while the kernels of 512 tokens
take 1,800 in all.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.decode import chunk_sizes


class Parts(NamedTuple):
    """What a chunk of B prompts' T tokens is made of."""

    tokens: Any  # int32 [B, T]
    weights: Any  # float32 [B, T], for the router
    start: Any  # int32 [B], where they stand
    n_valid: Any  # int32 [B], how many are no padding


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Parts of B prompts that are cut alike, as int32 [B, 2 T + 2] with the host: tokens, the bits of their weights,
    start, n_valid. A compiled program takes it as it is, at a tenth of what it costs to put it on the device first."""

    values: np.ndarray

    @property
    def rows(self) -> int:
        return self.values.shape[0]

    @property
    def size(self) -> int:
        return self.values.shape[1] // 2 - 1


def chunk_shape(size: int, rows: int) -> Any:
    """Shape and dtype of such an array."""
    return jax.ShapeDtypeStruct((rows, 2 * size + 2), jnp.int32)


def parts_of(values: jax.Array) -> Parts:
    """The parts of a chunk int32 [B, 2 T + 2], within a program."""
    size = values.shape[1] // 2 - 1
    weights = jax.lax.bitcast_convert_type(values[:, size : 2 * size], jnp.float32)
    return Parts(values[:, :size], weights, values[:, -2], values[:, -1])


def chunks_of(
    prompts: Sequence[Sequence[int]], sizes: tuple[int, ...], weights: Sequence[np.ndarray] | None = None
) -> list[Chunk]:
    """Prompts that are cut alike as chunks; where these begin and end depends on the length alone. Only the last one
    is padded, to each prompt's own length."""
    chunks, at = [], 0
    for size in chunk_sizes(len(prompts[0]), sizes):
        values = np.zeros((len(prompts), 2 * size + 2), np.int32)
        values[:, -2] = at
        for row, ids in enumerate(prompts):
            part = ids[at : at + size]
            values[row, : len(part)], values[row, -1] = part, len(part)
            if weights is not None:
                own = np.asarray(weights[row][at : at + size], np.float32)
                values[row, size : size + len(part)] = own.view(np.int32)
        chunks.append(Chunk(values))
        at += size
    return chunks
