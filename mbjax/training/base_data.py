"""Batches for the training of a base: rows of several corpora, shuffled, mixed and divided among processes by Grain."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np

from mbjax.errors import InputError
from mbjax.training.corpus_rows import open_corpus

MANY_ROWS = 2**50  # repeated: no training reads as many, and Grain's own "for ever" overflows in a batch


@dataclasses.dataclass(frozen=True)
class BaseBatch:
    """N rows of T tokens, all int32 [N, T].

    targets: the token to predict at each place, -1 where there is none (padding, the last token of a document's run
    in a row). segments: 0 padding, 1.. documents; no token may attend to another segment. positions count within it.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    positions: np.ndarray


def row_targets(tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """The next token of the same segment, -1 where there is none: int32, of the shape [..., T] of both."""
    targets = np.full(tokens.shape, -1, np.int32)
    inside = (segments[..., 1:] == segments[..., :-1]) & (segments[..., 1:] > 0)
    targets[..., :-1] = np.where(inside, tokens[..., 1:], -1)
    return targets


class BaseBatches(Iterator[BaseBatch]):
    """Batches of one process without end. The state is the number of the next global step."""

    def __init__(self, steps: "grain.IterDataset", start: int):
        self._iterator: Any = iter(steps)
        self.set_state({"next_index": start})

    def __next__(self) -> BaseBatch:
        rows = next(self._iterator)
        return BaseBatch(
            rows["tokens"], row_targets(rows["tokens"], rows["segments"]), rows["segments"], rows["positions"]
        )

    def get_state(self) -> dict[str, int]:
        """What `set_state` takes to go on from here: Grain's own, the number of the next step."""
        return self._iterator.get_state()

    def set_state(self, state: Mapping[str, int]) -> None:
        self._iterator.set_state(dict(state))


def base_batches(
    corpora: Mapping[str, tuple[Path, float]],
    *,
    rows: int,
    seed: int,
    start: int = 0,
    process: int = 0,
    processes: int = 1,
    threads: int = 2,
    prefetch: int = 8,
) -> BaseBatches:
    """An endless iterator over the batches of one process, from the global step `start` on.

    corpora: name -> (folder that `open_corpus` reads, weight). Of any stretch of rows each corpus makes up its weight's
    share, whatever its size; each is shuffled anew in every epoch of its own, by `seed` and its name. rows: of the
    global batch, which at a given step is the same for any number of processes; process p gets the rows
    [p * N, (p + 1) * N) of it, N = rows / processes. Everything follows from (corpora, rows, seed, step): no state
    but the step's number is needed to go on. threads read ahead up to `prefetch` batches.

    Raises InputError for a corpus that is missing, damaged or empty, for corpora that do not fit together, and for
    rows that cannot be divided.
    """
    if start < 0:
        raise InputError(f"the first step is {start}; give 0 or more")
    if rows < 1 or processes < 1 or rows % processes or not 0 <= process < processes:
        raise InputError(f"{rows} rows cannot be divided among {processes} processes (this one is {process})")
    sources = [_rows_of(name, folder, weight, seed) for name, (folder, weight) in sorted(corpora.items())]
    if not sources:
        raise InputError("no corpus to train on; name at least one")
    _check_alike(corpora)
    weights = [float(weight) for _, (_, weight) in sorted(corpora.items())]
    mixed = grain.MapDataset.mix(sources, weights) if len(sources) > 1 else sources[0]
    own = mixed.batch(rows // processes)[process::processes]
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return BaseBatches(own.to_iter_dataset(options), start)


def _rows_of(name: str, folder: Path, weight: float, seed: int) -> "grain.MapDataset":
    corpus = open_corpus(Path(folder))
    if not len(corpus):
        raise InputError(f"{folder}: the corpus '{name}' holds no row")
    if not weight > 0:
        raise InputError(f"the corpus '{name}' has the weight {weight}; give one above 0, or leave it out")
    own_seed = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "big")
    epochs = MANY_ROWS // len(corpus) + 1
    return grain.MapDataset.source(corpus).shuffle(seed=own_seed).repeat(epochs)


def _check_alike(corpora: Mapping[str, tuple[Path, float]]) -> None:
    infos = {name: open_corpus(Path(folder), verify=False).info for name, (folder, _) in sorted(corpora.items())}
    for what in ("row_length", "tokenizer_digest", "vocab_size"):
        values = {name: getattr(info, what) for name, info in infos.items()}
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{name}: {str(value)[:12]}" for name, value in values.items())
            raise InputError(f"the corpora differ in {what} ({shown}); write them with the same tokenizer and rows")
