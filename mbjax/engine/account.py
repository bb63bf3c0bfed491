"""The account of device bytes: what an engine may ever hold, by component, and whether a budget covers it."""

import dataclasses
from typing import Any

import jax

from mbjax.core.config import ModelConfig
from mbjax.core.decode import chunk_sizes
from mbjax.core.router import MAX_ACTIVE
from mbjax.engine.pack_form import PackForm
from mbjax.engine.programs import MOST_LANES, Programs, prefill_sizes
from mbjax.engine.sizes import format_bytes
from mbjax.errors import InputError
from mbjax.kernels.layers import MOST_PACKS

_PROGRAM = 3_500_000  # bytes of host memory that a compiled program takes, measured over twenty of them
_RUNTIME = 50_000_000  # the same for the tokenizer, the modules and all that is loaded with a base
_READING = 2.3  # times a pack's own bytes, while one is read: an int8 file, its values in float32, and their slot


@dataclasses.dataclass(frozen=True)
class Sizing:
    """How many packs fit on the device, and how many host memory keeps."""

    slots: int
    kept: int

    @classmethod
    def of(cls, installed: int | None) -> "Sizing":
        """Enough for every pack that is installed now, and at least for those that one prompt may use; none without a
        directory of packs."""
        if installed is None:
            return cls(0, 0)
        slots = max(MAX_ACTIVE, min(installed, MOST_PACKS))
        return cls(slots, max(slots, installed))


@dataclasses.dataclass(frozen=True)
class Account:
    """Bytes by component. `fits` is None without a budget; `position_bytes` is what a position of the context adds;
    `programs` holds the temporaries of each program, handlers' scratch included."""

    components: dict[str, int]
    total: int
    budget: int | None
    fits: bool | None
    programs: dict[str, int]
    context: int
    position_bytes: int

    def table(self) -> str:
        """The components on one line, the largest first."""
        parts = sorted(self.components.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size)

    def verdict(self) -> str:
        """One sentence: does it fit, and if not, what context would."""
        if self.budget is None or self.fits:
            return f"a context of {self.context} positions" + (" fits" if self.fits else "")
        most = self.fitting_context()
        if most < 1:
            lacking = self.total - self.position_bytes * self.context - self.budget
            return "does not fit; without any context it lacks " + format_bytes(max(lacking, 1))
        return f"does not fit; a context of about {most} positions would (--context)"

    def fitting_context(self) -> int:
        """About the longest context that the budget covers; 0 where none does."""
        if self.budget is None:
            return self.context
        return max(0, self.context - -(-(self.total - self.budget) // max(1, self.position_bytes)))

    def to_json(self) -> dict[str, Any]:
        """The `plan` document of the command line."""
        return dataclasses.asdict(self)


def sized(
    programs: Programs, form: PackForm | None, sizing: Sizing, router: int, budget: int | None, context: int
) -> Account:
    """The account of programs compiled so far, with room for that many packs. `router` are its bytes."""
    pack_bytes = form.bytes if form is not None else 0
    cpu = jax.default_backend() == "cpu"  # where host memory is the device's
    beyond = sizing.kept - (sizing.slots if form is not None and form.shares_memory else 0)
    temporaries = programs.temporary_bytes()
    components = {
        "base": programs.base_bytes(),
        "router": router,
        "packs": sizing.slots * pack_bytes,
        "packs in host memory": beyond * pack_bytes if cpu else 0,
        "reading a pack": int(_READING * pack_bytes) if cpu and sizing.slots else 0,
        "kv": programs.kv_bytes(),
        "experts": sizing.slots * programs.expert_bytes(),
        "tap states": programs.tap_bytes(),
        "sampling": programs.board_bytes(),
        "temporaries": programs.most_temporary_bytes(),
        "programs": _PROGRAM * len(temporaries) if cpu else 0,
        "tokenizer and modules": _RUNTIME if cpu else 0,
    }
    total = sum(components.values())
    per_position = (components["kv"] + components["experts"] + components["tap states"]) // programs.capacity
    fits = None if budget is None else total <= budget
    return Account(components, total, budget, fits, temporaries, context, per_position)


def capacity_for(context: int, lanes: int) -> int:
    """Positions of a lane of the cache: the padding of the last chunk is written, too."""
    return sum(chunk_sizes(context, prefill_sizes(lanes)))


def check_context(context: int, config: ModelConfig, name: str) -> None:
    if not 1 <= context <= config.max_context:
        raise InputError(f"context is {context}; {name} bears 1 to {config.max_context} positions")


def check_lanes(lanes: int) -> None:
    if not 1 <= lanes <= MOST_LANES:
        raise InputError(f"lanes is {lanes}; it must be 1 to {MOST_LANES}")
