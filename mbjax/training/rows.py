"""Packing examples into rows: a shared prefix once, then as many examples as fit; a prompt once for all its choices."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from mbjax.core.ops import BRANCH
from mbjax.core.train import Choices
from mbjax.training.examples import Example


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """R rows of T tokens; the arrays of `core.train.Batch` before batching, and the source lines of each row."""

    tokens: np.ndarray  # int32 [R, T]
    positions: np.ndarray  # int32 [R, T]
    segments: np.ndarray  # int32 [R, T], 0 the prefix, 1.. the examples, their choices as branches, -1 padding
    at: np.ndarray  # int32 [R, M]
    target: np.ndarray  # int32 [R, M], -1 where there is none
    lines: tuple[tuple[int, ...], ...]
    prefix: int
    choices: Choices | None = None  # where an example has some

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def n_used(self) -> int:
        """Tokens that are no padding."""
        return int((self.segments >= 0).sum())

    def first(self, n: int) -> "PackedRows":
        """The first `n` rows."""
        return PackedRows(
            self.tokens[:n],
            self.positions[:n],
            self.segments[:n],
            self.at[:n],
            self.target[:n],
            self.lines[:n],
            self.prefix,
            jax.tree.map(lambda array: array[:n], self.choices),
        )


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
    longest = prefix + max(_need(e, prefix) for e in examples)
    length = max(length, -(-longest // 64) * 64)
    order = np.random.default_rng(seed).permutation(len(examples))
    rows: list[list[Example]] = []
    open_rows: list[tuple[int, int]] = []  # (free tokens, row): only the few last, so that packing stays linear
    for i in order:
        need = _need(examples[i], prefix)
        fitting = [entry for entry in open_rows if entry[0] >= need]
        free, row = min(fitting) if fitting else (length - prefix, len(rows))
        if fitting:
            open_rows.remove((free, row))
        else:
            rows.append([])
        rows[row].append(examples[i])
        open_rows = sorted([*open_rows, (free - need, row)])[-32:]
    return _arrays(rows, length, prefix)


def _need(example: Example, prefix: int) -> int:
    """Tokens behind the prefix: the prompt once, and all choices."""
    return sum(len(ids) for _, _, ids in _parts(example, prefix))


def _parts(example: Example, prefix: int) -> list[tuple[int, int, tuple[int, ...]]]:
    """(branch, position of the first token, tokens) of what an example puts behind the prefix.

    An example with choices has its prompt as the trunk, branch 0, and the choices, the right one first, from 1 on.
    """
    if not example.wrong:
        return [(0, prefix, example.ids[prefix:])]
    first = example.scored.index(True)
    choices = [(n, first, ids[first:]) for n, ids in enumerate((example.ids, *example.wrong), 1)]
    return [(0, prefix, example.ids[prefix:first]), *choices]


def _arrays(rows: list[list[Example]], length: int, prefix: int) -> PackedRows:
    shape = (len(rows), length)
    tokens, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    segments = np.full(shape, -1, np.int32)
    marks: list[list[_Mark]] = []
    questions: list[list[int]] = []  # per row: the question of each of its choices, the right one first
    for r, row in enumerate(rows):
        tokens[r, :prefix] = row[0].ids[:prefix]
        positions[r, :prefix] = np.arange(prefix)
        segments[r, :prefix] = 0
        at = prefix
        marks.append([])
        questions.append([])
        for number, example in enumerate(row):
            start, parts = at, _parts(example, prefix)
            for branch, first, ids in parts:
                own = slice(at, at + len(ids))
                tokens[r, own], positions[r, own] = ids, np.arange(first, first + len(ids))
                segments[r, own] = number + 1 + branch * BRANCH
                if branch:
                    trunk_end = start + len(parts[0][2]) - 1
                    marks[r] += _choice_marks(ids, at, trunk_end, len(questions[r]), ended=branch == 1)
                    questions[r].append(number)
                at += len(ids)
            if not example.wrong:
                marks[r] += _marks(example, start - prefix, prefix)
    lines = tuple(tuple(example.line for example in row) for row in rows)
    where, target, of = (
        _padded([[mark[i] for mark in row] for row in marks], fill) for i, fill in enumerate((0, -1, -1))
    )
    choices = None
    if any(questions):
        question = _padded(questions, -1)
        right = (question >= 0) & (np.diff(question, axis=1, prepend=-1) != 0)
        choices = Choices(of, question, right)  # pyright: ignore[reportArgumentType]
    return PackedRows(tokens, positions, segments, where, target, lines, prefix, choices)


_Mark = tuple[int, int, int]  # index of the predicting token, token to predict, choice that it is part of


def _marks(example: Example, start: int, prefix: int) -> list[_Mark]:
    """The scored positions of an example whose token i stands at `start + i`."""
    return [(start + i - 1, example.ids[i], -1) for i in range(prefix + 1, len(example.ids)) if example.scored[i]]


def _choice_marks(ids: Sequence[int], at: int, trunk_end: int, choice: int, *, ended: bool) -> list[_Mark]:
    """The scored positions of a choice whose token i stands at `at + i`; the first is predicted by the trunk's last.

    The end behind the right choice is predicted, and is no part of what the choices are compared by.
    """
    predicting = [trunk_end, *range(at, at + len(ids) - 1)]
    marks = [(where, token, choice) for where, token in zip(predicting, ids, strict=True)]
    return [*marks[:-1], (*marks[-1][:2], -1)] if ended else marks


def _padded(rows: list[list[int]], fill: int) -> np.ndarray:
    """int32 [R, W], as wide as the longest, a multiple of 8."""
    padded = np.full((len(rows), -(-max(map(len, rows)) // 8) * 8), fill, np.int32)
    for r, row in enumerate(rows):
        padded[r, : len(row)] = row
    return padded
