"""What a request gets back."""

import dataclasses
from collections.abc import Sequence
from typing import Any

BETWEEN_PARTS = "\n\n"  # what stands between the answers to a prompt's two parts


@dataclasses.dataclass(frozen=True)
class RouteItem:
    """One selected pack: its id, its gate, and the router's calibrated score (None if the pack was forced).

    `part` is 0 for packs that answer together. A prompt of two parts is answered by one pack after the other, each
    with a gate of 1 in its own turn: part 1, then part 2.
    """

    pack: str
    gate: float
    score: float | None
    part: int = 0


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds to the first token, and tokens per second of prefill and of decoding (None if nothing was decoded)."""

    ttft_s: float
    prefill_tok_s: float
    decode_tok_s: float | None


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes by component, the peak of the account, and the budget (None if there is none)."""

    components: dict[str, int]
    peak: int
    budget: int | None


@dataclasses.dataclass(frozen=True)
class Reply:
    """A finished answer."""

    text: str
    tokens: list[int]
    n_prompt: int
    route: list[RouteItem]
    timing: Timing
    memory: Memory
    finish: str = "stop"  # stop, length, cancelled or deadline

    def to_json(self) -> dict[str, Any]:
        """The `generate` document of the command line."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "finish"}


def used(route: Sequence[RouteItem]) -> list[RouteItem]:
    """The packs of a route that take part: one that could not be loaded has a gate of 0."""
    return [item for item in route if item.gate > 0]


def in_turns(route: Sequence[RouteItem]) -> list[list[RouteItem]]:
    """The packs that take part, those that answer together in one list, in the order in which they answer."""
    items = used(route)
    return [[item for item in items if item.part == part] for part in sorted({item.part for item in items})] or [[]]
