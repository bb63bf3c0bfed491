"""One trainer in a process of its own, told what to do line by line, so that its peak memory is its own."""

import json
import sys
import time
from pathlib import Path
from typing import Protocol

from training_plan import Plan

RANK, ALPHA = 16, 32.0
RATE, WARMUP, DECAY, CLIP = 2e-3, 0.05, 0.01, 1.0  # AdamW; warm-up as a share of the steps, then cosine to a tenth


class Trainer(Protocol):
    def prepare(self, steps: int) -> float:
        """Makes ready for so many steps from a new adapter; seconds spent on tap states."""
        ...

    def step(self, number: int) -> float:
        """One optimiser step; the loss in nats per scored token before it."""
        ...

    def save(self, folder: Path) -> None:
        """Writes the adapter in PEFT's form."""
        ...


def memory(kind: str = "VmRSS") -> int:
    """Resident bytes of this process, now (`VmRSS`) or at their peak (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


def serve(trainer: Trainer, plan: Plan, imported: int) -> None:
    """Answers each line of standard input with a line of JSON.

    - `prepare STEPS`: makes ready; `tap_s`.
    - `steps N`: the next N steps; `tokens`, `seconds` and `loss`, the loss of each.
    - `until TIME`: further steps up to the last one prepared, none begun after that time of the clock; `steps`, `loss`.
    - `save FOLDER`: writes the adapter.
    - `memory`: resident bytes after the `import`s and at the `peak` so far.
    """
    prepared = done = 0
    for line in sys.stdin:
        command, _, argument = line.strip().partition(" ")
        answer: dict[str, object] = {}
        if command == "prepare":
            prepared, done = int(argument), 0
            answer = {"tap_s": trainer.prepare(prepared)}
        elif command == "steps":
            begin, which = time.perf_counter(), range(done, done + int(argument))
            losses = [trainer.step(i) for i in which]
            seconds, done = time.perf_counter() - begin, which.stop
            answer = {"tokens": sum(plan.tokens_of(i) for i in which), "seconds": seconds, "loss": losses}
        elif command == "until":
            losses = []
            while done < prepared and time.time() < float(argument):
                losses.append(trainer.step(done))
                done += 1
            answer = {"steps": done, "loss": losses}
        elif command == "save":
            trainer.save(Path(argument))
        elif command == "memory":
            answer = {"import": imported, "peak": memory("VmHWM")}
        print(json.dumps(answer), flush=True)
