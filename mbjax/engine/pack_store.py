"""The pack store: packs on disk, in host memory, and those in use on the device, all in the one shape of a slot."""

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np

from mbjax.core.pack import Pack
from mbjax.core.router import MAX_ACTIVE
from mbjax.core.slots import Slot, to_slot
from mbjax.engine.pack_form import PackForm, find_packs, stamp_of
from mbjax.engine.residency import Residency
from mbjax.errors import InputError, MbjaxError
from mbjax.io.load import LoadedBase
from mbjax.io.pack_load import read_fitting_pack

MOST_SLOTS = 64  # packs that the store keeps in memory where no budget says otherwise


@dataclasses.dataclass(frozen=True)
class PackState:
    """Where a pack is: `disk`, `host` or `device`; how many requests use it; why it cannot be used, if so."""

    id: str
    level: str
    pinned: bool
    users: int
    problem: str | None


class PackStore:
    """Packs by id. Safe to use from several threads; disk is read by a thread of its own.

    The form of a slot is fixed from the packs that the directory holds at the start; one that is put there later must
    fit into it. Both memories forget the least recently used pack first, but none that is pinned or in use.
    """

    def __init__(self, base: LoadedBase, directory: Path | None, *, force_base: bool = False) -> None:
        self._base, self.directory, self._force_base = base, directory, force_base
        self.paths, self._found = find_packs(directory), stamp_of(directory)
        self.form = PackForm.of(base, list(self.paths.values()))
        self.layout, self.bytes = self.form.layout, self.form.bytes
        self.device = Residency(MOST_SLOTS * self.bytes)
        self.host = Residency(MOST_SLOTS * self.bytes)
        self._arrays: dict[str, Pack | Slot] = {}
        self._buffers: dict[str, np.ndarray | jax.Array] = {}
        self._users: Counter[str] = Counter()
        self._pins: set[str] = set()
        self._problems: dict[str, tuple[str, object]] = {}
        self._loading: set[str] = set()
        self._changed = threading.Condition(threading.RLock())
        self._loader = ThreadPoolExecutor(1, "mbjax-packs")
        self.on_change: Callable[[], None] = lambda: None  # called when a load has ended or a pack was let go

    def limit(self, slots: int, kept: int) -> None:
        """Room for `slots` packs on the device and `kept` in host memory."""
        self.device.capacity, self.host.capacity = slots * self.bytes, kept * self.bytes

    def close(self) -> None:
        self._loader.shutdown(wait=True, cancel_futures=True)

    def ids(self) -> list[str]:
        with self._changed:
            self._rescan()
            return sorted(self.paths)

    def list(self) -> list[PackState]:
        """Every pack of the directory."""
        with self._changed:
            return [self._state(pack) for pack in self.ids()]

    def check(self, packs: Sequence[str]) -> tuple[str, ...]:
        """The ids, if they are known and not too many. Raises InputError else."""
        _check_number(packs)
        with self._changed:
            for pack in packs:
                self._path(pack)
        return tuple(packs)

    def load(self, pack: str) -> None:
        """Brings a pack to the device and waits for it. Raises as `problem` says, or where there is no room."""
        self.use((pack,))

    def unload(self, pack: str) -> None:
        """Takes a pack out of both memories, and its pin away. Raises InputError where a request uses it."""
        with self._changed:
            self._path(pack)
            if self._users[pack]:
                raise InputError(f"{pack} is in use by {self._users[pack]} requests; it cannot be unloaded now")
            self._pins.discard(pack)
            self._drop(pack)
        self.on_change()

    def pin(self, pack: str) -> None:
        """Loads a pack and keeps it. Raises InputError where too little room would be left for the others."""
        with self._changed:
            pins = {*self._pins, pack}
            others = min(MAX_ACTIVE, len(self.paths.keys() - pins))
            if (len(pins) + others) * self.bytes > self.device.capacity:
                raise InputError(
                    f"pinning {pack} leaves no room for {others} other packs; unload another or raise --budget"
                )
        self.use((pack,))
        with self._changed:
            self._pins.add(pack)

    def unpin(self, pack: str) -> None:
        with self._changed:
            self._pins.discard(pack)

    def prefetch(self, packs: Sequence[str]) -> None:
        """Begins to load those that are known and on disk only; nothing is said of what fails."""
        with self._changed:
            for pack in packs:
                if pack in self.paths and pack not in self._buffers and self._problem(pack) is None:
                    self._begin(pack)

    def problem(self, pack: str) -> str | None:
        """Why a pack cannot be used, in one line; None where nothing is known against it. What failed is not tried
        again until its files change."""
        with self._changed:
            return self._problem(pack)

    def try_hold(self, packs: Sequence[str]) -> tuple[Pack | Slot, ...] | None:
        """All of these on the device, kept there until `release`; None where they are still to come: loading has then
        begun, or waits for room. Raises InputError for an unknown pack, or one that cannot be used."""
        _check_number(packs)
        with self._changed:
            if not self._ready(packs):
                return None
            self._users.update(packs)
            return tuple(self._arrays[pack] for pack in packs)

    def release(self, packs: Sequence[str]) -> None:
        with self._changed:
            self._users.subtract(packs)
            self._changed.notify_all()
        self.on_change()

    def use(self, packs: Sequence[str]) -> tuple[Pack | Slot, ...]:
        """All of these on the device; waits for them. They may be swapped out later, the arrays stay what they are."""
        _check_number(packs)
        with self._changed:
            while not self._ready(packs):
                if not self._loading and self._room_never_comes(packs):
                    raise InputError(f"no room on the device for {', '.join(packs)}; unload a pack or raise --budget")
                self._changed.wait()
            return tuple(self._arrays[pack] for pack in packs)

    def swap_seconds(self, pack: str) -> float:
        """How long it takes to bring a pack that host memory holds into use; for measurements."""
        self.use((pack,))
        with self._changed:
            if self._users[pack] == 0:
                self.device.drop(pack)
                del self._arrays[pack]
            begin = time.perf_counter()
            self._ready((pack,))
            jax.block_until_ready(self._arrays[pack])
            return time.perf_counter() - begin

    def memory(self) -> dict[str, int]:
        """Bytes on the device, and of host memory; on a CPU a slot may be the very buffer that the host level keeps."""
        with self._changed:
            shared = self.device.used if self.form.shares_memory else 0
            on_host = self.host.used - shared if jax.default_backend() == "cpu" else 0
            return {"packs": self.device.used, "packs in host memory": max(0, on_host)}

    def _state(self, pack: str) -> PackState:
        level = "device" if pack in self.device else "host" if pack in self.host else "disk"
        return PackState(pack, level, pack in self._pins, self._users[pack], self._problem(pack))

    def _path(self, pack: str) -> Path:
        self._rescan()
        if pack not in self.paths:
            known = ", ".join(sorted(self.paths)) or "none"
            raise InputError(f"no pack '{pack}' in {self.directory or 'use: no pack directory'} (there: {known})")
        return self.paths[pack]

    def _rescan(self) -> None:
        """Sees what was installed or removed since the last look."""
        if (found := stamp_of(self.directory)) != self._found:
            self.paths, self._found = find_packs(self.directory), found
            for pack in self._buffers.keys() - self.paths.keys():
                if not self._users[pack]:
                    self._pins.discard(pack)
                    self._drop(pack)

    def _problem(self, pack: str) -> str | None:
        reason, stamp = self._problems.get(pack, (None, None))
        if reason is not None and stamp != stamp_of(self.paths.get(pack)):
            del self._problems[pack]
            return None
        return reason

    def _ready(self, packs: Sequence[str]) -> bool:
        """Whether all are on the device; what is not begins to come."""
        for pack in packs:
            self._path(pack)
            if (reason := self._problem(pack)) and pack not in self._buffers:
                raise InputError(reason)
        for pack in packs:
            if pack not in self._buffers:
                self._begin(pack)
            elif pack not in self.device:
                self._place(pack, packs)
            self.device.touch(pack)
            self.host.touch(pack)
        return all(pack in self.device for pack in packs)

    def _begin(self, pack: str) -> None:
        """Loads a pack in the background, unless all that host memory holds is in use: whoever waits asks again."""
        if pack not in self._loading and self.host.leaving(self.bytes, self._kept()) is not None:
            self._loading.add(pack)
            self._loader.submit(self._fetch, pack, self.paths[pack])

    def _fetch(self, pack: str, path: Path) -> None:
        """On the loader's thread: from disk into host memory and, where there is room, onto the device."""
        stamp, problem, buffer = stamp_of(path), None, None
        try:
            buffer = self._read(path)
        except MbjaxError as error:
            problem = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a file can do to its reader is this pack's problem alone
            problem = f"{path}: {type(error).__name__}: {error}"
        with self._changed:
            self._loading.discard(pack)
            if problem is not None:
                self._problems[pack] = (problem, stamp)
            elif buffer is not None:
                self._keep(pack, buffer)
            self._changed.notify_all()
        self.on_change()

    def _read(self, path: Path) -> np.ndarray | jax.Array:
        stored = read_fitting_pack(path, self._base, force_base=self._force_base)
        try:
            return self.form.kept(to_slot(stored.params, self.layout))
        except ValueError as error:
            raise InputError(f"{path} does not fit the engine's slots ({error}); start again with it there") from None

    def _keep(self, pack: str, buffer: np.ndarray | jax.Array) -> None:
        going = self.host.leaving(self.bytes, self._kept())
        if going is None:  # all that is here is in use: whoever waits for this pack asks again
            return
        for other in going:
            self._drop(other)
        self._buffers[pack] = buffer
        self.host.put(pack, self.bytes)
        self._place(pack, ())

    def _place(self, pack: str, wanted: Sequence[str]) -> None:
        """From host memory onto the device, where that has room."""
        going = self.device.leaving(self.bytes, {*self._kept(), *wanted})
        if going is None:
            return
        for other in going:
            self.device.drop(other)
            del self._arrays[other]
        self._arrays[pack] = self.form.placed(self._buffers[pack])
        self.device.put(pack, self.bytes)

    def _kept(self) -> set[str]:
        return self._pins | {pack for pack, users in self._users.items() if users > 0}

    def _room_never_comes(self, packs: Sequence[str]) -> bool:
        """Whether only pins, which nobody will take away, stand in the way."""
        return (len(self._pins - set(packs)) + len(packs)) * self.bytes > self.device.capacity

    def _drop(self, pack: str) -> None:
        for level in (self.device, self.host):
            level.drop(pack)
        for held in (self._arrays, self._buffers):
            held.pop(pack, None)


def _check_number(packs: Sequence[str]) -> None:
    if len(packs) > MAX_ACTIVE:
        raise InputError(f"{len(packs)} packs asked for ({', '.join(packs)}); at most {MAX_ACTIVE} work together")
