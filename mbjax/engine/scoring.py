"""Log-probabilities of many token sequences, in batches of like length."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.base import Base
from mbjax.core.config import ModelConfig
from mbjax.core.forward import Packs
from mbjax.core.pack import Mix
from mbjax.core.score import token_logprobs

SHORTEST = 32  # tokens of the smallest program; each longer one is twice as long
_TOKENS_PER_BATCH, _MANY_TOKENS = 1024, 8192  # for products at full speed on the CPU, and on accelerators
_MOST_ROWS = 16  # whose logits of a stretch of tokens 4 GB have room for


@dataclasses.dataclass(frozen=True)
class Row:
    """Token ids of which those from index `first` (at least 1) on are scored, each after all that stand before it."""

    ids: Sequence[int]
    first: int


def windows(ids: Sequence[int], window: int, stride: int) -> list[Row]:
    """Parts a text so that each token but the first is scored once, in steps of `stride`, by rows that read `window`.

    Every token past the first `window` is scored with at least `window - stride` tokens before it.
    """
    rows, at = [], 1
    while at < len(ids):
        end = min(len(ids), at + (window if at == 1 else stride))
        start = max(0, end - 1 - window)
        rows.append(Row(ids[start:end], at - start))
        at = end
    return rows


def row_logprobs(
    params: Base,
    config: ModelConfig,
    rows: Sequence[Row],
    packs: Packs = (),
    progress: Callable[[int, int], None] | None = None,
    gates: np.ndarray | None = None,
) -> list[float]:
    """The summed natural log-probability of each row's scored tokens, in the order of `rows`.

    `packs` are forced on all of them, with `gates` float32 [N, P], or of 1. Few programs are compiled: one per length
    bucket, each with a fixed number of rows. `progress(done, total)` counts rows.
    """
    totals, done = [0.0] * len(rows), 0
    gates = np.ones((len(rows), len(packs)), np.float32) if gates is None else gates
    buckets: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        buckets.setdefault(_bucket(len(row.ids) - 1), []).append(i)
    most_tokens = _TOKENS_PER_BATCH if jax.default_backend() == "cpu" else _MANY_TOKENS
    for length, members in sorted(buckets.items()):
        n_rows = max(1, min(_MOST_ROWS, most_tokens // length))
        for at in range(0, len(members), n_rows):
            batch = members[at : at + n_rows]
            padded = np.zeros((n_rows, len(packs)), np.float32)
            padded[: len(batch)] = gates[batch]
            mix = Mix(packs, jnp.asarray(padded))
            found = _score(params, mix, config, [rows[i] for i in batch], n_rows, length)
            for i, total in zip(batch, found, strict=True):
                totals[i] = total
            done += len(batch)
            if progress is not None:
                progress(done, len(rows))
    return totals


def _bucket(n_tokens: int) -> int:
    length = SHORTEST
    while length < n_tokens:
        length *= 2
    return length


def _score(params: Base, mix: Mix, config: ModelConfig, rows: list[Row], n_rows: int, length: int) -> list[float]:
    tokens, targets = (np.zeros((n_rows, length), np.int32) for _ in range(2))
    for b, row in enumerate(rows):
        tokens[b, : len(row.ids) - 1], targets[b, : len(row.ids) - 1] = row.ids[:-1], row.ids[1:]
    found = token_logprobs(params, mix, jnp.asarray(tokens), jnp.asarray(targets), config=config)
    logprobs = np.asarray(found, np.float64)
    return [float(logprobs[b, row.first - 1 : len(row.ids) - 1].sum()) for b, row in enumerate(rows)]
