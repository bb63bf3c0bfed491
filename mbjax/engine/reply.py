"""What a request gets back."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class RouteItem:
    """One selected pack: its id, its gate, and the router's calibrated score (None if the pack was forced)."""

    pack: str
    gate: float
    score: float | None


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
