"""One request: what was asked, how far it is, and where its tokens go."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from mbjax.core.router import Pooled
from mbjax.core.sampling import Sampling
from mbjax.engine.chunks import Chunk
from mbjax.engine.device import Group
from mbjax.engine.reply import RouteItem
from mbjax.io.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class End:
    """The last event of a request: why no more tokens come; `error` where the request failed."""

    reason: str  # stop, length, cancelled, deadline or failed
    error: BaseException | None = None


@dataclasses.dataclass(eq=False)
class Request:
    """`packs` None leaves the choice to the router; `reads_whole` says that it must have read all of the prompt before
    a pack takes part. `deliver` is called on the engine's thread: with token ids, then with one `End`. `scores_only`
    ends it once the router has read the prompt.

    Packs that do not answer together answer one after the other, each reading the prompt anew; `turn` counts these. Until
    the last of them has its turn none may use more than its share of what tokens are left.
    """

    prompt: Prompt
    packs: tuple[str, ...] | None
    reads_whole: bool
    max_tokens: int
    sampling: Sampling
    ends: frozenset[int]
    deliver: Callable[[Any], None]
    deadline: float | None = None  # on the clock of time.monotonic
    scores_only: bool = False
    drafts: bool = True

    cancelled: bool = False
    seat: int = -1
    seats: jax.Array | None = None  # the same, int32 [1] on the device
    chunks: list[Chunk] = dataclasses.field(default_factory=list)
    read: int = 0  # chunks whose first phase is done
    at: int = 0  # chunks whose second phase is done
    states: list[jax.Array] = dataclasses.field(default_factory=list)  # chunks at the tap, between the two
    pooled: Pooled | None = None
    route: list[RouteItem] | None = None
    turns: list[list[RouteItem]] = dataclasses.field(default_factory=lambda: [[]])  # those of a route that is known
    turn: int = 0
    given: int = 0  # tokens that were there before this turn
    cut_off: bool = False  # whether a turn ended for want of room
    held: tuple[str, ...] = ()
    group: Group | None = None  # its own, for prefill
    last: jax.Array | None = None  # the hidden state after the newest chunk
    begun: int = 0  # tokens of this turn whose computation has begun
    tokens: list[int] = dataclasses.field(default_factory=list)
    ended: bool = False
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    marks: dict[str, float] = dataclasses.field(default_factory=dict)  # start, first and newest token, seconds

    def mark(self, name: str) -> None:
        self.marks[name] = time.perf_counter()

    def tell(self, event: Any) -> None:
        """Delivers an event; who cannot take it any more (a closed event loop) gets no others."""
        try:
            self.deliver(event)
        except Exception:  # noqa: BLE001 - what a reader does wrong must not end the others' answers
            self.cancelled = True

    @property
    def draftable(self) -> bool:
        """Whether the most probable token is always taken, as drafts suppose, and drafts are wanted."""
        return self.drafts and self.sampling.temperature == 0 and self.sampling.repetition_penalty == 1

    @property
    def room(self) -> int:
        """The most tokens of this turn."""
        left = self.max_tokens - self.given
        return -(-left // (len(self.turns) - self.turn))

    def overdue(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline
