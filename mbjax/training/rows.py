"""Packing examples into rows: a shared prefix once, then as many examples as fit."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mbjax.training.examples import Example


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """R rows of T tokens; the arrays of `core.train.Batch` before batching, and the source lines of each row."""

    tokens: np.ndarray  # int32 [R, T]
    positions: np.ndarray  # int32 [R, T]
    segments: np.ndarray  # int32 [R, T], 0 the prefix, 1.. the examples, -1 padding
    at: np.ndarray  # int32 [R, M]
    target: np.ndarray  # int32 [R, M], -1 where there is none
    lines: tuple[tuple[int, ...], ...]
    prefix: int

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def n_used(self) -> int:
        """Tokens that are no padding."""
        return int((self.segments >= 0).sum())


def common_prefix(examples: Sequence[Example]) -> int:
    """Tokens that all examples begin with and that none of them scores."""
    first, last = (min(examples, key=lambda e: e.ids), max(examples, key=lambda e: e.ids))
    n = 0
    while n < min(len(first.ids), len(last.ids)) - 1 and first.ids[n] == last.ids[n]:
        n += 1
    unscored = min(e.scored.index(True) if True in e.scored else len(e.ids) for e in examples)
    return min(n, unscored - 1 if unscored else 0, min(len(e.ids) for e in examples) - 1)


def pack_rows(examples: Sequence[Example], length: int, seed: int, prefix: int | None = None) -> PackedRows:
    """Examples, shuffled by `seed`, packed best-fit into rows of `length` tokens (more where one example needs it)."""
    prefix = common_prefix(examples) if prefix is None else prefix
    longest = max(len(e.ids) for e in examples)
    length = max(length, -(-longest // 64) * 64)
    order = np.random.default_rng(seed).permutation(len(examples))
    rows: list[list[Example]] = []
    open_rows: list[tuple[int, int]] = []  # (free tokens, row): only the few last, so that packing stays linear
    for i in order:
        need = len(examples[i].ids) - prefix
        fitting = [entry for entry in open_rows if entry[0] >= need]
        free, row = min(fitting) if fitting else (length - prefix, len(rows))
        if fitting:
            open_rows.remove((free, row))
        else:
            rows.append([])
        rows[row].append(examples[i])
        open_rows = sorted([*open_rows, (free - need, row)])[-32:]
    return _arrays(rows, length, prefix)


def _arrays(rows: list[list[Example]], length: int, prefix: int) -> PackedRows:
    shape = (len(rows), length)
    tokens, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    segments = np.full(shape, -1, np.int32)
    marks: list[list[tuple[int, int]]] = []  # per row: (index of the predicting token, token to predict)
    for r, row in enumerate(rows):
        tokens[r, :prefix] = row[0].ids[:prefix]
        positions[r, :prefix] = np.arange(prefix)
        segments[r, :prefix] = 0
        at, scored = prefix, []
        for s, example in enumerate(row, 1):
            own = len(example.ids) - prefix
            tokens[r, at : at + own] = example.ids[prefix:]
            positions[r, at : at + own] = np.arange(prefix, prefix + own)
            segments[r, at : at + own] = s
            scored += [(at + i - 1, example.ids[prefix + i]) for i in range(1, own) if example.scored[prefix + i]]
            at += own
        marks.append(scored)
    width = -(-max(len(scored) for scored in marks) // 8) * 8
    where, target = np.zeros((len(rows), width), np.int32), np.full((len(rows), width), -1, np.int32)
    for r, scored in enumerate(marks):
        where[r, : len(scored)] = [at for at, _ in scored]
        target[r, : len(scored)] = [token for _, token in scored]
    lines = tuple(tuple(example.line for example in row) for row in rows)
    return PackedRows(tokens, positions, segments, where, target, lines, prefix)
