"""The results behind the matrix, measured and kept piece by piece: a few lines with one choice of packs each."""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import Item, Passage
from mbjax.engine.evaluate import evaluate
from mbjax.io.files import atomic_write
from mbjax.io.lock import locked
from mbjax.io.pack_dir import read_pack

PIECE = 128  # lines, of like length, so that batches are full
TOLD_EVERY = 15.0  # seconds

Results = list[dict[str, Any]]
Unit = tuple[str, int]  # a choice of packs, and a piece of the lines


@dataclasses.dataclass(frozen=True)
class Identity:
    """What of a pack decides its answers, as hashes: its arrays, not its card and scores. Of its route key only what
    is routed depends on it."""

    forced: str
    routed: str

    @classmethod
    def of(cls, path: Path) -> "Identity":
        stored = read_pack(path)
        arrays = {name: [str(a.dtype), a.shape, hash_of(a.tobytes())] for name, a in sorted(stored.tensors.items())}
        weights = {name: told for name, told in arrays.items() if not name.startswith("route.")}
        route = None if stored.route is None else [stored.route.threshold, stored.route.background_digest]
        forced, routed = (hash_of(json.dumps(told).encode()) for told in (weights, [arrays, route]))
        return cls(forced, routed)


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Parts:
    """Results of the lines of one file with each choice of packs, in `keep`; `devices` are those they came from.

    `about` says what else they depend on. What is there for the same lines and packs is not measured again, and what
    another process is at is left to it: several may share the work, and each ends with all of it.
    """

    def __init__(self, keep: Path, about: dict[str, Any], items: Sequence[Item], packs: dict[str, Identity]) -> None:
        self._keep, self._about, self._items, self._packs = keep, {**about, "n": len(items)}, items, packs
        self._pieces = list(_pieces(items))
        self.devices: set[str] = set()

    def results(self, engine: Engine, uses: Sequence[str]) -> dict[str, Results]:
        """By choice of packs (`none`, a pack, `auto`), in the order of the lines. The first choices are measured first,
        the router's, `auto`, comes last: it takes over what was measured before with the packs that it chose."""
        progress = _progress(f"{self._about['domain']} {self._about['file']}", len(uses) * len(self._pieces))
        forced = [use for use in uses if use != "auto"]
        for stage in (forced, uses[len(forced) :]):
            self._share(engine, [(use, piece) for use in stage for piece in range(len(self._pieces))], uses, progress)
        return {use: self._whole(engine, use, uses) for use in uses}

    def _share(
        self, engine: Engine, units: Sequence[Unit], uses: Sequence[str], progress: Callable[[str], None]
    ) -> None:
        """Measures what nobody else is at; then waits for the rest."""
        for wait in (False, True):
            busy = []
            for use, piece in units:
                with locked(self._path(use, piece).with_suffix(".lock"), wait=wait) as held:
                    if held:
                        self._take(engine, use, piece, uses)
                        progress(use)
                    else:
                        busy.append((use, piece))
            units = busy

    def _whole(self, engine: Engine, use: str, uses: Sequence[str]) -> Results:
        found: Results = [{} for _ in self._items]
        for piece, members in enumerate(self._pieces):
            for i, result in zip(members, self._take(engine, use, piece, uses), strict=True):
                found[i] = result
        return found

    def _take(self, engine: Engine, use: str, piece: int, uses: Sequence[str]) -> Results:
        """Measured, or what was measured before."""
        if (kept := self._kept(use, piece)) is None:
            kept = self._measured(engine, use, piece, uses)
            path = self._path(use, piece)
            with atomic_write(path) as file:
                file.write(json.dumps(kept).encode())
        self.devices.add(kept["device"])
        return kept["results"]

    def _kept(self, use: str, piece: int) -> dict[str, Any] | None:
        path = self._path(use, piece)
        kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return kept if self._about_of(use, piece).items() <= kept.items() else None

    def _measured(self, engine: Engine, use: str, piece: int, uses: Sequence[str]) -> dict[str, Any]:
        known = {}
        for other in uses if use == "auto" else ():
            if other != "auto" and (kept := self._kept(other, piece)) is not None:
                known[() if other == "none" else (other,)] = kept["results"]
        results = evaluate(engine, [self._items[i] for i in self._pieces[piece]], pack=use, known=known).items
        device = jax.devices()[0].device_kind
        return {**self._about_of(use, piece), "device": device, "results": results}

    def _about_of(self, use: str, piece: int) -> dict[str, Any]:
        if use == "auto":
            packs = {pack: own.routed for pack, own in self._packs.items()}
        else:
            packs = {} if use == "none" else {use: self._packs[use].forced}
        return {**self._about, "piece": piece, "pieces": len(self._pieces), "use": use, "packs": packs}

    def _path(self, use: str, piece: int) -> Path:
        return self._keep / f"{self._about['domain']}.{Path(self._about['file']).stem}.{use}.{piece:03d}.json"


def _pieces(items: Sequence[Item]) -> Iterator[list[int]]:
    """Indices of lines of like length."""
    by_length = sorted(range(len(items)), key=lambda i: len(_prompt(items[i])))
    for at in range(0, len(items), PIECE):
        yield by_length[at : at + PIECE]


def _prompt(item: Item) -> str:
    return item.text if isinstance(item, Passage) else item.prompt


def _progress(where: str, total: int) -> Callable[[str], None]:
    started = last = time.monotonic()
    done = 0

    def progress(use: str) -> None:
        nonlocal last, done
        now, done = time.monotonic(), done + 1
        if now - last > TOLD_EVERY or done == total:
            last = now
            print(f"{where}: {use}, {done} of {total} pieces ({now - started:.0f} s)", file=sys.stderr, flush=True)

    return progress
