"""Starts the measurements of `card.py`, each in a process of its own, and keeps what they find."""

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from card_cells import Cell

from mbjax.errors import InputError
from mbjax.io.files import atomic_write

CHILD = Path(__file__).with_name("card_child.py")
LEAST = 20.0  # seconds that must be left for a process to be started
_TOTAL = "import jax; s = jax.devices()[0].memory_stats() or {}; print(jax.default_backend(), s.get('bytes_limit', 0))"


class Results:
    """Cell by name in one file, which is rewritten whole with every new one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise InputError(f"{path}: cannot be written; choose another --out")
        try:
            self.cells: dict[str, Any] = json.loads(path.read_text())["cells"] if path.exists() else {}
        except (ValueError, KeyError, OSError) as error:
            raise InputError(
                f"{path}: holds no results of this program ({error}); remove it, or choose another file"
            ) from error

    def put(self, name: str, found: dict[str, Any]) -> None:
        self.cells[name] = found
        with atomic_write(self.path) as file:
            file.write(json.dumps({"cells": self.cells}, indent=1).encode())

    def lacks(self, name: str, retry: bool) -> bool:
        there = self.cells.get(name)
        return there is None or (retry and failed(there))


def failed(found: dict[str, Any]) -> bool:
    """Whether a cell, or a part of it, came to no result."""
    return "error" in found or any(isinstance(part, dict) and failed(part) for part in found.values())


@dataclasses.dataclass
class Child:
    """A running process, where it writes, and when it is to end."""

    process: subprocess.Popen[bytes]
    folder: tempfile.TemporaryDirectory[str]
    begin: float
    seconds: float

    @classmethod
    def start(cls, cell: Cell, mode: str, base: str | None, fraction: float | None, seconds: float) -> "Child":
        folder = tempfile.TemporaryDirectory(prefix="card-")
        place = Path(folder.name)
        (place / "cell.json").write_text(json.dumps({"cell": dataclasses.asdict(cell), "base": base}))
        words = [sys.executable, str(CHILD), str(place / "cell.json"), str(place / "result.json"), mode]
        with open(place / "log", "wb") as log:
            env = _environment(cell, mode, fraction)
            process = subprocess.Popen(words, stdout=log, stderr=log, env=env, start_new_session=True)
        return cls(process, folder, time.perf_counter(), seconds)

    def end(self) -> dict[str, Any]:
        """Waits, no longer than it may take. What was found, with `error` where it did not come to its end."""
        left = self.seconds - (time.perf_counter() - self.begin)
        late = False
        try:
            self.process.wait(max(left, 0.1))
        except subprocess.TimeoutExpired:
            self.stop()
            late = True
        place = Path(self.folder.name)
        result, lines = place / "result.json", (place / "log").read_text(errors="replace").strip().splitlines()
        found = json.loads(result.read_text()) if result.exists() else {}
        found["wall_s"] = time.perf_counter() - self.begin
        if not found.pop("done", False):
            found["error"] = f"ended after {self.seconds:.0f} s" if late else _reason(lines)
            found["log"] = lines[-15:]
        self.folder.cleanup()
        return found

    def stop(self) -> None:
        """Ends it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def run_cells(cells: list[Cell], results: Results, options: argparse.Namespace) -> None:
    """Measures what the file lacks, a few at a time, until the time is up."""
    begin = time.perf_counter()
    wanted = [cell for cell in cells if results.lacks(cell.name, options.retry)]
    if not wanted:
        return
    fraction = _fraction(options.limit_gib)

    def left() -> float:
        return options.seconds - (time.perf_counter() - begin)

    for start in range(0, len(wanted), options.ahead):
        batch = wanted[start : start + options.ahead]
        compiled = _prepare(batch, results, options.base, left)
        for cell in batch:
            if not cell.timed or left() < LEAST:
                continue
            _say(f"{cell.name} ({left():.0f} s left)")
            child = Child.start(cell, "measure", options.base, fraction, min(cell.seconds, left()))
            found = _ended([child])[0]
            _say(f"{cell.name}: {found.get('error', 'measured')} in {found['wall_s']:.0f} s")
            results.put(cell.name, found | {"compiled": compiled.get(cell.name)})
    for cell in wanted:
        if results.lacks(cell.name, False):
            _say(f"{cell.name}: not measured, the time is up")


def _prepare(batch: list[Cell], results: Results, base: str | None, left: Any) -> dict[str, Any]:
    """Side by side: compiles for those that are timed, and does those that are not."""
    if left() < LEAST:
        return {}
    children = []
    for cell in batch:
        if cell.warm or not cell.timed:
            mode = "warm" if cell.timed else "measure"
            children.append((cell, Child.start(cell, mode, base, None, min(cell.seconds, left()))))
    _say(f"preparing {', '.join(cell.name for cell, _ in children)}")
    found = {}
    for cell, one in zip([cell for cell, _ in children], _ended([child for _, child in children]), strict=True):
        found[cell.name] = one
        _say(f"{cell.name}: {found[cell.name].get('error', 'prepared')} in {found[cell.name]['wall_s']:.0f} s")
        if not cell.timed:
            results.put(cell.name, found.pop(cell.name))
    return found


def _ended(children: list[Child]) -> list[dict[str, Any]]:
    """What each found; none outlives this process where it is interrupted."""
    try:
        return [child.end() for child in children]
    except BaseException:
        for child in children:
            child.stop()
        raise


def _environment(cell: Cell, mode: str, fraction: float | None) -> dict[str, str]:
    """The memory limit holds where one is measured; those that prepare side by side take what they need."""
    own = dict(os.environ)
    if fraction is not None and cell.limited:
        return own | {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{fraction:.6f}", "XLA_PYTHON_CLIENT_PREALLOCATE": "true"}
    return own | {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def _fraction(limit_gib: float) -> float | None:
    """The limit as a share of the device's memory; None where the device keeps no statistics."""
    env = dict(os.environ) | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "XLA_PYTHON_CLIENT_MEM_FRACTION": "1.0"}
    done = subprocess.run(
        [sys.executable, "-c", _TOTAL], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    words = done.stdout.split()
    total = int(words[1]) if done.returncode == 0 and len(words) == 2 else 0
    return limit_gib * 2**30 / total if total else None


def _reason(lines: list[str]) -> str:
    """The last line that looks like an error."""
    errors = [line for line in lines if "Error" in line or "error" in line]
    return (errors or lines or ["ended without a word"])[-1][:400]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
