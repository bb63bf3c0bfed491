"""One measurement of `card.py`, or the compilation it needs, in a process of its own: `card.py` starts it.

    python infer/card_child.py CELL.json RESULT.json measure|warm

Every figure is in RESULT.json as soon as it exists: one that runs out of time leaves what it has.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from card_cells import Cell

from mbjax.engine.compile_cache import use_compile_cache
from mbjax.io.files import atomic_write

MODULES = {"rates": "card_rates", "decode": "card_decode", "torch": "card_torch", "swap": "card_swap",
           "logits": "card_logits", "train_pack": "card_train", "train_base": "card_train"}  # fmt: skip
FLAGS = ("XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_PREALLOCATE", "JAX_DEFAULT_MATMUL_PRECISION")


class Notes:
    """What was found so far, written anew with every addition."""

    def __init__(self, path: Path, base: str | None = None) -> None:
        self.path, self.base, self.found = path, base, {}

    def put(self, **figures: Any) -> None:
        self.found |= figures
        with atomic_write(self.path) as file:
            file.write(json.dumps(self.found).encode())
        print(f"  {', '.join(figures)}", file=sys.stderr, flush=True)


def about_device() -> dict[str, Any]:
    """What the figures were taken on."""
    import jax

    device = jax.devices()[0]
    flags = {name: os.environ[name] for name in FLAGS if name in os.environ}
    statistics = device.memory_stats() or {}
    return {"backend": jax.default_backend(), "device": device.device_kind, "jax": jax.__version__, "flags": flags,
            "bytes_limit": statistics.get("bytes_limit")}  # fmt: skip


def count_cache(counts: dict[str, int]) -> None:
    """Counts programs that were read from the cache and those that were not there: where any was compiled, what the
    compiler tried out on the device is in the allocator's peak."""
    import jax

    def heard(event: str, **_: Any) -> None:
        if event.startswith("/jax/compilation_cache/cache_"):
            name = event.rsplit("_", 1)[1]
            counts[name] = counts.get(name, 0) + 1

    jax.monitoring.register_event_listener(heard)


def main() -> None:
    cell_file, result, mode = sys.argv[1:]
    asked = json.loads(Path(cell_file).read_text())
    cell, notes = Cell.of(asked["cell"]), Notes(Path(result), asked["base"])
    begin, cache = time.perf_counter(), dict[str, int]()
    if cell.part != "torch":
        use_compile_cache()
        count_cache(cache)
        notes.put(**about_device())
    getattr(importlib.import_module(MODULES[cell.part]), mode)(cell, notes)
    notes.put(done=True, program_cache=cache, process_s=time.perf_counter() - begin)


if __name__ == "__main__":
    main()
