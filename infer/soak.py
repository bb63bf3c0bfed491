"""Mixed load for a while: several clients, packs that swap, are damaged and repaired, answers cancelled or overdue.

    python infer/soak.py [--minutes 30] [--dtype int8] [--json] [--write]     Linux

Every error must be the request's own (a pack it named is damaged), resident memory must stay flat, and no thread may
be left at the end. Exits with 1 else.
"""

import collections
import random
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from made_packs import make_packs
from report import parser, publish, table

from mbjax.core.sampling import Sampling
from mbjax.engine.engine import Engine
from mbjax.errors import InputError, MbjaxError

BASE, LANES, CLIENTS, SLOTS = "smollm2-135m", 4, 6, 4
WORDS = [
    "rain",
    "bread",
    "bridge",
    "train",
    "garden",
    "sea",
    "chess",
    "clock",
    "river",
    "lamp",
    "song",
    "winter",
    "paper",
    "glass",
    "road",
    "mountain",
]


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmRSS in /proc/self/status: Linux is needed")


class Client:
    """One user: asks, reads, gives up now and then."""

    def __init__(self, engine: Engine, packs: list[str], damaged: set[str], seed: int) -> None:
        self.engine, self.packs, self.damaged, self.random = engine, packs, damaged, random.Random(seed)
        self.counts: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            pack = self.random.choice([*self.packs, "none", "auto", ",".join(self.random.sample(self.packs, 2))])
            risky = bool(set(pack.split(",")) & self.damaged)
            try:
                self._ask(pack)
            except InputError as error:
                self.counts["own errors"] += 1
                if not risky and not set(pack.split(",")) & self.damaged and "packs" not in str(error):
                    self.wrong.append(f"{pack}: {error}")
            except MbjaxError as error:
                self.wrong.append(f"{pack}: {error}")

    def _ask(self, pack: str) -> None:
        prompt = "Say something of " + " and ".join(self.random.choices(WORDS, k=self.random.choice((2, 5, 120))))
        sampling = Sampling(temperature=self.random.choice((0.0, 0.8)), seed=self.random.randrange(1000))
        timeout = self.random.choice((None, None, 0.5))
        stream = self.engine.stream(
            prompt, pack=pack, max_tokens=self.random.randrange(1, 48), sampling=sampling, timeout=timeout
        )
        stop_after = self.random.choice((None, None, 3))
        for n, _ in enumerate(stream):
            if n == stop_after:
                stream.close()
                break
        self.counts[str(stream.finish)] += 1
        self.counts["tokens"] += len(stream.tokens)


def disturb(directory: Path, spare: Path, damaged: set[str], packs: list[str], until: float) -> None:
    """Damages a pack on disk every few seconds and repairs it a little later."""
    chance = random.Random(0)
    while time.monotonic() < until:
        pack = chance.choice(packs)
        damaged.add(pack)
        file = directory / pack / "pack.safetensors"
        file.write_bytes(file.read_bytes()[:-7])
        time.sleep(2)
        shutil.copy(spare / pack / "pack.safetensors", file)
        time.sleep(2)
        damaged.discard(pack)


def soak(minutes: float, dtype: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        directory, spare = Path(folder, "packs"), Path(folder, "spare")
        with Engine.load(BASE, dtype=dtype, context=512) as bare:
            packs = make_packs(spare, bare.base, 8)
        del bare
        shutil.copytree(spare, directory)
        with Engine.load(BASE, packs=directory, dtype=dtype, context=512, lanes=LANES) as engine:
            engine.warm_up()
            engine.packs.limit(SLOTS, SLOTS + 1)
            damaged: set[str] = set()
            until = time.monotonic() + 60 * minutes
            clients = [Client(engine, packs, damaged, seed) for seed in range(CLIENTS)]
            workers = [threading.Thread(target=client.run, args=(until,)) for client in clients]
            workers.append(threading.Thread(target=disturb, args=(directory, spare, damaged, packs, until)))
            for worker in workers:
                worker.start()
            samples = []
            while time.monotonic() < until:
                time.sleep(min(2.0, max(0.1, until - time.monotonic())))
                samples.append((time.monotonic(), resident_bytes()))
            for worker in workers:
                worker.join()
            users = sum(state.users for state in engine.packs.list())
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("mbjax")]
    counts = sum((client.counts for client in clients), collections.Counter())
    wrong = [text for client in clients for text in client.wrong]
    return {"minutes": minutes, "dtype": dtype, "counts": dict(counts), "wrong": wrong, "threads_left": left,
            "packs_still_held": users, **slope(samples)}  # fmt: skip


def slope(samples: list[tuple[float, int]]) -> dict[str, float]:
    """Resident bytes after the first third: their growth per hour, its standard error, and the mean."""
    late = np.array(samples[len(samples) // 3 :], np.float64)
    hours = (late[:, 0] - late[:, 0].mean()) / 3600
    growth = float((hours * late[:, 1]).sum() / (hours**2).sum())
    rest = late[:, 1] - late[:, 1].mean() - growth * hours
    error = float(np.sqrt((rest**2).sum() / max(1, len(late) - 2) / (hours**2).sum()))
    return {"resident_mean": float(late[:, 1].mean()), "growth_per_hour": growth, "growth_error": error,
            "resident_spread": float(np.ptp(late[:, 1]))}  # fmt: skip


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--minutes", type=float, default=30)
    command.add_argument("--dtype", default="int8")
    options = command.parse_args()
    found = soak(options.minutes, options.dtype)
    rows = [*((name, n) for name, n in sorted(found["counts"].items()))]
    rows += [
        ("errors that were not the request's own", len(found["wrong"])),
        ("threads left", len(found["threads_left"])),
        ("packs still held", found["packs_still_held"]),
        ("resident memory", f"{found['resident_mean'] / 1e6:.0f} MB, spread {found['resident_spread'] / 1e6:.1f} MB"),
        ("its growth per hour", f"{found['growth_per_hour'] / 1e6:.1f} ± {found['growth_error'] / 1e6:.1f} MB"),
    ]
    publish(options, found, f"{options.minutes:g} minutes of mixed load", table(("what", "count"), rows), "soak.md")
    if found["wrong"] or found["threads_left"] or found["packs_still_held"]:
        sys.exit("; ".join([*found["wrong"][:3], *found["threads_left"]]) or "packs are still held")


if __name__ == "__main__":
    main()
