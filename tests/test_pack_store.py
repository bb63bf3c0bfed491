"""The pack store against a simple model, by random operations (1,000 in all), with the budget checked after each."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from test_kernels import needs_native
from tiny import random_base
from tiny_packs import about, random_pack
from tiny_router import TINY, tiny_base

from mbjax.core.quantize import RULES, quantize
from mbjax.engine.engine import Engine
from mbjax.engine.pack_form import PackForm
from mbjax.engine.pack_store import PackStore
from mbjax.engine.plan import Planned
from mbjax.engine.residency import Residency
from mbjax.errors import InputError, MbjaxError
from mbjax.io.pack_dir import write_pack
from mbjax.io.pack_load import binding

IDS = ("a", "b", "c", "d", "e", "f")
SLOTS, CONTEXT = 3, 64
packs = st.sampled_from(IDS)


def write(directory: Path, base, pack_id: str, seed: int = 0) -> Path:
    pack = random_pack(base.config, seed=seed, expert=False)
    write_pack(directory / pack_id, pack, about(id=pack_id, base=binding(base)), card=f"# {pack_id}\n")
    return directory / pack_id


@pytest.fixture(scope="module")
def base():
    return tiny_base()


@pytest.fixture(scope="module")
def stock(base, tmp_path_factory):
    directory = tmp_path_factory.mktemp("stock")
    for seed, pack_id in enumerate(IDS):
        write(directory, base, pack_id, seed)
    return directory


@pytest.fixture
def store(base, stock):
    store = PackStore(base, stock)
    store.limit(SLOTS, SLOTS + 1)
    yield store
    store.close()


def levels(store: PackStore) -> dict[str, str]:
    return {state.id: state.level for state in store.list()}


def test_the_least_recently_used_pack_goes_first(store):
    for pack in ("a", "b", "c"):
        store.load(pack)
    store.load("a")
    store.load("d")
    assert levels(store) == {"a": "device", "b": "host", "c": "device", "d": "device", "e": "disk", "f": "disk"}
    store.load("e")  # host memory keeps four: b is older than any of them
    assert levels(store)["b"] == "disk" and levels(store)["c"] == "host"


def test_packs_in_use_or_pinned_stay(store):
    store.pin("a")
    assert store.try_hold(("b",)) is None
    while store.try_hold(("b",)) is None:
        time.sleep(0.001)
    for pack in ("c", "d", "e", "f"):
        store.load(pack)
    assert levels(store)["a"] == levels(store)["b"] == "device"
    with pytest.raises(InputError, match="in use by 1"):
        store.unload("b")
    with pytest.raises(InputError, match="leaves no room"):
        store.pin("b")
    store.release(("b",))
    store.unload("b")
    assert levels(store)["b"] == "disk"


def test_a_request_waits_where_all_slots_are_in_use(store):
    for pair in (("a", "b"), ("c",)):
        store.use(pair)
        assert store.try_hold(pair) is not None
    assert store.try_hold(("d",)) is None
    store.release(("c",))
    store.use(("d",))
    assert store.try_hold(("d",)) is not None


def test_a_damaged_pack_is_not_tried_again_until_its_file_changes(base, stock, tmp_path):
    copy = shutil.copytree(stock, tmp_path / "packs")
    store, reads = PackStore(base, copy), []
    read = store._read
    store._read = lambda path: (reads.append(path), read(path))[1]
    sound = (copy / "a" / "pack.safetensors").read_bytes()
    (copy / "a" / "pack.safetensors").write_bytes(sound[:-3])
    for _ in range(3):
        with pytest.raises(InputError, match="pack.safetensors"):
            store.load("a")
    assert len(reads) == 1
    assert next(state.problem for state in store.list() if state.id == "a")
    (copy / "a" / "pack.safetensors").write_bytes(sound)
    store.load("a")
    assert len(reads) == 2 and levels(store)["a"] == "device"
    store.close()


def test_a_pack_installed_later_is_found_and_one_removed_is_not(base, stock, tmp_path):
    copy = tmp_path / "packs"
    copy.mkdir()
    shutil.copytree(stock / "a", copy / "a")
    store = PackStore(base, copy)
    assert store.ids() == ["a"]
    shutil.copytree(stock / "b", copy / "b")
    store.load("b")
    shutil.rmtree(copy / "a")
    with pytest.raises(InputError, match=r"no pack 'a'.*there: b"):
        store.load("a")
    store.close()


@needs_native
def test_a_whole_pack_on_the_cpu_is_the_hosts_own_buffer(stock):
    base = tiny_base()
    from mbjax.core.fused import bundled

    whole = bundled(quantize(random_base(TINY), RULES["int8"])[0], TINY)
    store = PackStore(dataclasses.replace(base, params=whole), stock, force_base=True)
    store.limit(SLOTS, SLOTS)
    slot = store.use(("a",))[0]
    assert slot.values.unsafe_buffer_pointer() == store._buffers["a"].ctypes.data
    assert store.memory() == {"packs": store.bytes, "packs in host memory": 0}
    store.close()


class Operations(RuleBasedStateMachine):
    """Load, unload, pin, unpin, hold, release, generate, cancel, damage, install and remove, on an engine's store and
    on a model of it."""

    base: Any = None
    planned: Any = None  # with the programs, so that they are compiled once
    stock = Path()
    room = Path()
    done = 0

    @initialize()
    def start(self) -> None:
        shutil.rmtree(self.room, ignore_errors=True)
        shutil.copytree(self.stock, self.room)
        self.engine = Engine(self.base, packs=self.room, context=CONTEXT, planned=self.planned)
        self.store = self.engine.packs
        self.store.limit(SLOTS, SLOTS + 1)
        self.users: list[tuple[str, ...]] = []
        self.pins: set[str] = set()
        self.damaged: set[str] = set()
        self.gone: set[str] = set()

    def held(self) -> set[str]:
        return {pack for packs in self.users for pack in packs}

    def blocked(self, wanted: set[str]) -> bool:
        return len(self.held() | self.pins | wanted) > SLOTS

    def usable(self, pack: str) -> bool:
        return pack not in self.gone and (pack not in self.damaged or levels(self.store)[pack] != "disk")

    @rule(pack=packs)
    def load(self, pack: str) -> None:
        if self.usable(pack) and self.blocked({pack}) and not len(self.pins | {pack}) > SLOTS:
            return  # it would wait for a release
        try:
            self.store.load(pack)
        except MbjaxError:
            assert not self.usable(pack) or self.blocked({pack})
        else:
            assert levels(self.store)[pack] == "device"

    @rule(pack=packs)
    def unload(self, pack: str) -> None:
        try:
            self.store.unload(pack)
        except InputError:
            assert pack in self.gone or pack in self.held()
        else:
            self.pins.discard(pack)
            assert levels(self.store)[pack] == "disk"

    @rule(pack=packs)
    def pin(self, pack: str) -> None:
        if self.usable(pack) and self.blocked({pack}):
            return
        try:
            self.store.pin(pack)
        except InputError:
            assert not self.usable(pack) or len(self.pins | {pack}) + 2 > SLOTS
        else:
            self.pins.add(pack)

    @rule(pack=packs)
    def unpin(self, pack: str) -> None:
        self.store.unpin(pack)
        self.pins.discard(pack)

    @rule(wanted=st.sets(packs, min_size=1, max_size=2))
    def hold(self, wanted: set[str]) -> None:
        chosen = tuple(sorted(wanted))
        if self.blocked(wanted) and all(self.usable(pack) for pack in wanted):
            return
        try:
            self.store.use(chosen)
            found = self.store.try_hold(chosen)
        except InputError:
            assert not all(self.usable(pack) for pack in wanted)
        else:
            assert found is not None and len(found) == len(chosen)
            self.users.append(chosen)

    @rule(which=st.integers(0, 9))
    def release(self, which: int) -> None:
        if self.users:
            self.store.release(self.users.pop(which % len(self.users)))

    @rule(pack=packs, n_tokens=st.integers(1, 3))
    def generate(self, pack: str, n_tokens: int) -> None:
        if self.usable(pack) and self.blocked({pack}):
            return
        try:
            reply = self.engine.generate("hello", raw=True, pack=pack, max_tokens=n_tokens)
        except InputError:
            assert not self.usable(pack)
        else:
            assert len(reply.tokens) == n_tokens and [item.pack for item in reply.route] == [pack]
            assert sum(self.store.memory().values()) <= (2 * SLOTS + 1) * self.store.bytes
        self.nobody_but_mine()

    @rule(pack=packs)
    def cancel(self, pack: str) -> None:
        if not self.usable(pack) or self.blocked({pack}):
            return
        stream = self.engine.stream("hello", raw=True, pack=pack, max_tokens=CONTEXT)
        next(stream)
        stream.close()
        self.nobody_but_mine()

    def nobody_but_mine(self) -> None:
        """Waits until the engine's thread has let go of a request's packs."""
        until = time.monotonic() + 10
        while sum(state.users for state in self.store.list()) != sum(
            pack not in self.gone for packs in self.users for pack in packs
        ):
            assert time.monotonic() < until, self.store.list()
            time.sleep(0.0005)

    @rule(pack=packs)
    def damage(self, pack: str) -> None:
        if pack not in self.gone:
            (self.room / pack / "pack.safetensors").write_bytes(b"not this" + pack.encode())
            self.damaged.add(pack)

    @rule(pack=packs)
    def install(self, pack: str) -> None:
        shutil.rmtree(self.room / pack, ignore_errors=True)
        shutil.copytree(self.stock / pack, self.room / pack)
        self.damaged.discard(pack)
        self.gone.discard(pack)
        self.look()

    @rule(pack=packs)
    def remove(self, pack: str) -> None:
        shutil.rmtree(self.room / pack, ignore_errors=True)
        self.gone.add(pack)
        self.look()

    def look(self) -> None:
        """The store sees what changed: what is gone and used by nobody leaves memory, its pin with it."""
        self.store.list()
        self.pins -= self.gone - self.held()

    @invariant()
    def the_budget_holds(self) -> None:
        if not hasattr(self, "store"):
            return
        store, Operations.done = self.store, Operations.done + 1
        assert store.device.used <= SLOTS * store.bytes and store.host.used <= (SLOTS + 1) * store.bytes
        assert sum(array.size * 4 for array in store._buffers.values()) == store.host.used
        assert set(store._arrays) == set(store.device) <= set(store.host) == set(store._buffers)
        assert self.held() | {pin for pin in self.pins if pin not in self.gone} <= set(store.device)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.engine.close()


def test_a_thousand_random_operations_agree_with_a_simple_model(base, stock, tmp_path):
    Operations.base, Operations.stock, Operations.room = base, stock, tmp_path / "room"
    form = PackForm.of(base, [stock / pack for pack in IDS])
    Operations.planned = Planned.of(base.params, base.config, form, CONTEXT, 1, "float32")
    checks = settings(
        max_examples=30,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Operations, settings=checks)
    assert Operations.done >= 1000


def test_residency_names_the_oldest_that_must_leave():
    memory = Residency(10)
    for pack, size in (("a", 4), ("b", 3), ("c", 3)):
        assert memory.leaving(size, ()) == []
        memory.put(pack, size)
    memory.touch("a")
    assert memory.leaving(3, ()) == ["b"] and memory.leaving(4, ()) == ["b", "c"]
    assert memory.leaving(3, {"b"}) == ["c"] and memory.leaving(5, {"b", "c"}) is None
    memory.drop("c")
    assert memory.used == 7 and list(memory) == ["b", "a"] and "c" not in memory


def test_generation_and_the_store_keep_the_budget_together(base, stock):
    """A budget too small for all packs: requests over all of them still come to their end, and never hold more."""
    from mbjax.engine.plan import Installed, Wishes, plan

    wishes = Wishes(context=64, lanes=2, packs=Installed.at(stock))
    wanted = plan(TINY, wishes)
    slot = wanted.components["packs"] // len(IDS)
    with Engine(base, packs=stock, context=64, lanes=2, budget=wanted.total - 3 * slot) as engine:
        assert engine.sizing.slots < len(IDS)
        streams = [engine.stream("hello", raw=True, pack=pack, max_tokens=5) for pack in (*IDS, "none", *IDS)]
        for stream in streams:
            assert "".join(stream) is not None and len(stream.tokens) == 5
            assert sum(engine.memory().components.values()) <= engine.memory().budget
    with pytest.raises(InputError, match=r"more than the budget of .*base"):
        Engine(base, packs=stock, context=64, budget=100_000)
    assert jax.default_backend()
