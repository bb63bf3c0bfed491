"""How fast packs swap: from host memory into use, from disk, and what other requests notice of it.

    python infer/swap.py [--dtype int8] [--json] [--write]     Linux

host to use: a pack that host memory holds is brought into use while another goes. On a CPU a slot is the host's own
buffer, so that nothing is copied; `copy` is what a copy of the same bytes takes. from disk: reading, checking and
padding a pack whose pages are not in the page cache, against reading the same files and nothing else. gap: the longest
pause between two tokens of one request while another lane answers short requests, each with the next pack from disk,
against the same requests without packs; both in turns, medians of the rounds.
"""

import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from card_model import compilations
from made_packs import make_packs
from report import load, parser, publish, table

from mbjax.engine.engine import Engine

BASE, TOKENS, REPEATS, ROUNDS = "smollm2-135m", 96, 15, 5
PROMPT = "Tell me a long story about a lighthouse keeper who finds a map."


def forget_pages(path: Path) -> None:
    """Drops a directory's files from the page cache, as far as the system does so when asked."""
    for file in path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_seconds(path: Path) -> float:
    forget_pages(path)
    begin = time.perf_counter()
    for file in path.iterdir():
        file.read_bytes()
    return time.perf_counter() - begin


def load_seconds(engine: Engine, pack: str, path: Path) -> float:
    """From disk to use."""
    engine.packs.unload(pack)
    forget_pages(path)
    begin = time.perf_counter()
    engine.packs.load(pack)
    return time.perf_counter() - begin


def copy_seconds(n_bytes: int) -> float:
    source, target = np.ones(n_bytes // 4, np.float32), np.zeros(n_bytes // 4, np.float32)
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def gaps(engine: Engine, other: list[str]) -> list[float]:
    """Seconds between the tokens of one request while another lane answers short ones, each with the next pack."""
    times, done = [], threading.Event()

    def beside() -> None:
        for i in range(1000):
            if done.is_set():
                return
            engine.generate("One word, please.", pack=other[i % len(other)], max_tokens=8)

    worker = threading.Thread(target=beside)
    stream = engine.stream(PROMPT, pack="none", max_tokens=TOKENS)
    next(stream)
    worker.start()
    for _ in stream:
        times.append(time.perf_counter())
    done.set()
    worker.join()
    return np.diff(times).tolist()


def measure(dtype: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with Engine.load(BASE, dtype=dtype, context=512) as bare:
            ids = make_packs(directory, bare.base, 4)
        with Engine.load(BASE, packs=directory, dtype=dtype, context=512, lanes=2, drafts=False) as engine:
            engine.warm_up()
            engine.packs.limit(2, 4)
            for pack in ids:
                engine.packs.load(pack)
            hot = statistics.median(engine.packs.swap_seconds(ids[i % 4]) for i in range(REPEATS))
            copy = copy_seconds(engine.packs.bytes)
            from_disk = [(load_seconds(engine, p, directory / p), read_seconds(directory / p)) for p in ids * 3]
            engine.packs.limit(2, 2)
            with compilations() as compiled:
                rounds = [(gaps(engine, ["none"]), gaps(engine, ids)) for _ in range(ROUNDS)]
    return {
        "dtype": dtype,
        "pack_bytes": engine.packs.bytes,
        "host_s": hot,
        "copy_s": copy,
        "disk_s": statistics.median(load for load, _ in from_disk),
        "read_s": statistics.median(read for _, read in from_disk),
        "share": statistics.median(read / load for load, read in from_disk),
        "step_s": statistics.median(gap for still, _ in rounds for gap in still),
        "gap_still_s": [max(still) for still, _ in rounds],
        "gap_swapping_s": [max(swapping) for _, swapping in rounds],
        "compiled": len(compiled),
    }


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--dtype", default="int8")
    options = command.parse_args()
    begun = load()
    found = measure(options.dtype)
    still, swapping = (statistics.median(found[name]) for name in ("gap_still_s", "gap_swapping_s"))
    steps = (swapping - still) / found["step_s"]
    rows = [
        (f"host memory to use, {found['pack_bytes'] / 1e6:.1f} MB", f"{1e3 * found['host_s']:.3f} ms"),
        ("a copy of as many bytes", f"{1e3 * found['copy_s']:.3f} ms"),
        ("from disk, cold, to use", f"{1e3 * found['disk_s']:.1f} ms"),
        ("reading the same files, cold", f"{1e3 * found['read_s']:.1f} ms"),
        ("share of the disk's read rate (target 70%)", f"{found['share']:.0%}"),
        ("a step of two lanes (median gap)", f"{1e3 * found['step_s']:.1f} ms"),
        ("longest gap, another lane without swaps", f"{1e3 * still:.1f} ms"),
        ("longest gap, another lane swaps each time", f"{1e3 * swapping:.1f} ms"),
        ("the difference, in steps (target 2)", f"{steps:.1f}"),
        ("programs compiled meanwhile", found["compiled"]),
    ]
    publish(options, found, "Swapping packs", begun + table(("what", "measured"), rows), "swap.md")


if __name__ == "__main__":
    main()
