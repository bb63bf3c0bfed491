"""What both trainers read: the same examples, grouped into the same optimiser steps. Needs numpy alone."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from mbjax.training.examples import Example
    from mbjax.training.rows import PackedRows

_FILE = "plan.npz"


@dataclasses.dataclass(frozen=True)
class Plan:
    """E examples packed into R rows; step i takes the next `step_rows` rows, from the first again after the last."""

    ids: np.ndarray  # int32, the tokens of all examples, one after the other
    scored: np.ndarray  # bool, of the same length: the tokens to predict
    starts: np.ndarray  # int64 [E + 1], where each example begins in `ids`
    members: np.ndarray  # int64 [E], example numbers in the order of the rows
    row_starts: np.ndarray  # int64 [R + 1], where each row begins in `members`
    tokens: np.ndarray  # these five as in `mbjax.training.rows.PackedRows`
    positions: np.ndarray
    segments: np.ndarray
    at: np.ndarray
    target: np.ndarray
    prefix: int
    step_rows: int

    @classmethod
    def of(cls, examples: "list[Example]", rows: "PackedRows", step_rows: int) -> Self:
        numbers = {example.line: i for i, example in enumerate(examples)}
        lengths = [len(example.ids) for example in examples]
        return cls(
            ids=np.concatenate([np.asarray(example.ids, np.int32) for example in examples]),
            scored=np.concatenate([np.asarray(example.scored, bool) for example in examples]),
            starts=np.cumsum([0, *lengths]),
            members=np.asarray([numbers[line] for row in rows.lines for line in row]),
            row_starts=np.cumsum([0, *(len(row) for row in rows.lines)]),
            tokens=rows.tokens,
            positions=rows.positions,
            segments=rows.segments,
            at=rows.at,
            target=rows.target,
            prefix=rows.prefix,
            step_rows=step_rows,
        )

    def save(self, folder: Path) -> None:
        np.savez(folder / _FILE, **vars(self))

    @classmethod
    def load(cls, folder: Path) -> Self:
        with np.load(folder / _FILE) as arrays:
            values: dict[str, Any] = {name: arrays[name] for name in arrays.files}
        values |= {name: int(values[name]) for name in ("prefix", "step_rows")}
        return cls(**values)

    def rows_of(self, step: int) -> np.ndarray:
        """The numbers of a step's rows."""
        return (step * self.step_rows + np.arange(self.step_rows)) % len(self.tokens)

    def examples_of(self, step: int) -> np.ndarray:
        """The numbers of the examples in a step's rows."""
        return np.concatenate([self.members[self.row_starts[r] : self.row_starts[r + 1]] for r in self.rows_of(step)])

    def tokens_of(self, step: int) -> int:
        """Tokens of a step's examples: no padding, and the shared prefix counted in every one of them."""
        which = self.examples_of(step)
        return int((self.starts[which + 1] - self.starts[which]).sum())
