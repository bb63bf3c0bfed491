"""Drafts of what a text goes on with, looked up in the text itself (prompt lookup decoding), and whether they pay."""

import contextlib
import time
from collections.abc import Iterator, Sequence

import numpy as np

from mbjax.engine.programs import DRAFT

LONGEST, SHORTEST = 4, 2  # tokens of the end of the text that are looked for further up
_PATIENCE = 12  # steps without a saving before drafting rests
_REST = 32  # steps of the first rest; each one after it is twice as long, up to 1024
_LONGEST_REST = 1024


class Drafter:
    """Guesses, and rests where guessing costs more than it saves.

    A step of eight rows costs `_cost` single steps, measured as it goes along; a draft pays where more tokens than
    that come out of it.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled
        self._cost, self._step_s, self._verify_s = 2.0, 0.0, 0.0
        self._balance, self._resting, self._rest = float(_PATIENCE), 0, _REST

    def willing(self) -> bool:
        """Whether to look for a draft now; each call counts as one step."""
        if not self._enabled:
            return False
        if self._resting > 0:
            self._resting -= 1
            return False
        return True

    def guess(self, prompt: Sequence[int], tokens: Sequence[int]) -> list[int] | None:
        """What followed the last tokens where they stood before; None where they did not."""
        return looked_up([*prompt, *tokens])

    def rest_of(self, follows: Sequence[int], landed: Sequence[int]) -> np.ndarray | None:
        """The draft int32 [DRAFT] that is left of a guess once its first tokens have come; None where they are others."""
        rest = list(follows[len(landed) :])
        if list(follows[: len(landed)]) != list(landed) or not rest:
            self._pay(0.25)  # no step was queued behind another
            return None
        return np.asarray((rest + [rest[-1]] * DRAFT)[:DRAFT], np.int32)

    def saw(self, count: int) -> None:
        """Notes that a draft gave so many tokens."""
        self._pay(self._cost - count)

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Around a draft's step."""
        begin = time.perf_counter()
        yield
        self._verify_s = _mean(self._verify_s, time.perf_counter() - begin)
        self._weigh()

    def step_took(self, seconds: float) -> None:
        """Notes how long a single step takes."""
        self._step_s = _mean(self._step_s, seconds)
        self._weigh()

    def _weigh(self) -> None:
        if self._step_s and self._verify_s:
            self._cost = self._verify_s / self._step_s

    def _pay(self, cost: float) -> None:
        self._balance = min(float(_PATIENCE), self._balance - cost)
        if self._balance <= 0:
            self._balance, self._resting = float(_PATIENCE), self._rest
            self._rest = min(2 * self._rest, _LONGEST_REST)
        elif cost < 0:
            self._rest = _REST


def looked_up(text: Sequence[int]) -> list[int] | None:
    """What follows the latest earlier place of the longest end of `text` that has one: a draft and the token before it."""
    values = np.asarray(text, np.int32)
    for n in range(min(LONGEST, len(values) - 1), SHORTEST - 1, -1):
        windows = np.lib.stride_tricks.sliding_window_view(values[:-1], n)
        places = np.flatnonzero((windows == values[-n:]).all(axis=1))
        if len(places):
            at = int(places[-1]) + n
            return values[at : at + DRAFT + 1].tolist()
    return None


def _mean(old: float, new: float) -> float:
    return new if old == 0 else 0.8 * old + 0.2 * new
