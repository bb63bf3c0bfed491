"""Decoding, prefill and the peak of memory of one base in one dtype, as the engine runs it: for `card.py`."""

import statistics as stats
import time
from typing import Any

import jax
import numpy as np
from card_cells import Cell
from card_child import Notes
from card_model import (
    ROUTER_BYTES,
    SLOTS,
    base_shapes,
    compilations,
    compile_needed,
    pack_buffers,
    pack_form,
    programs_for,
    random_base,
    statistics,
)
from card_trace import device_events

from mbjax.core.sampling import Sampling
from mbjax.engine.account import Sizing, sized
from mbjax.engine.chunks import chunks_of
from mbjax.engine.device import Device, Group
from mbjax.engine.pack_form import PackForm
from mbjax.engine.programs import BURST, Programs, prefill_sizes, tree_bytes


def context_of(cell: Cell) -> int:
    return cell.scale.context if cell.lanes == 1 else cell.scale.lane_context


def prompts_of(cell: Cell) -> tuple[int, ...]:
    """Tokens of all prompts that a measurement takes in."""
    return (context_of(cell), cell.scale.prompt, *(cell.scale.prefills if cell.lanes == 1 else ()))


def warm(cell: Cell, notes: Notes) -> None:
    """Compiles from shapes alone."""
    form = pack_form(cell.config)
    programs = programs_for(cell.config, base_shapes(cell.config, cell.dtype), form, cell.lanes, context_of(cell))
    notes.put(compile_s=compile_needed(programs, form, prompts_of(cell)))
    notes.put(account=sized(programs, form, Sizing(SLOTS, SLOTS), ROUTER_BYTES, None, context_of(cell)).total)


def measure(cell: Cell, notes: Notes) -> None:
    """The parts in turn; what one cannot do keeps no other from being measured."""
    bench = Bench(cell, notes)
    notes.put(resident=bench.resident())
    parts: list[tuple[str, Any]] = [(f"decode_{n}", lambda n=n: bench.decoding(n)) for n in range(SLOTS + 1)]
    if cell.lanes == 1:
        parts += [(f"prefill_{n}", lambda n=n: bench.prefilling(n)) for n in cell.scale.prefills]
    parts += [("memory", bench.peak), ("trace", bench.trace)]
    for name, part in parts:
        try:
            notes.put(**{name: part()})
        except Exception as error:  # noqa: BLE001 - each is a result of its own, an error too
            notes.put(**{name: {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}})


class Bench:
    """One base with its packs and lanes on the device."""

    def __init__(self, cell: Cell, notes: Notes) -> None:
        self.cell, self.scale, self.config = cell, cell.scale, cell.config
        self.context = context_of(cell)
        self.form: PackForm = pack_form(self.config)
        self.buffers = pack_buffers(self.form, SLOTS)
        shapes = base_shapes(self.config, cell.dtype)
        self.programs: Programs = programs_for(self.config, shapes, self.form, cell.lanes, self.context)
        notes.put(base_bytes=self.programs.base_bytes(), pack_bytes=self.form.bytes, capacity=self.programs.capacity,
                  read_bytes=_read_bytes(shapes), position_bytes=self._position_bytes())  # fmt: skip
        notes.put(compiled_again_s=compile_needed(self.programs, self.form, prompts_of(cell)))
        self.params = random_base(self.config, cell.dtype)
        self.router = jax.device_put(np.ones(ROUTER_BYTES // 4, np.float32))  # stands for it, byte for byte
        self.packs = [self.form.placed(self.buffers[0])]
        jax.block_until_ready((self.params, self.router, self.packs))
        self.device: Device | None = None
        self.rng = np.random.default_rng(1)

    def _position_bytes(self) -> int:
        """Of keys and values, one position of one lane."""
        return (self.programs.kv_bytes() - 4 * self.cell.lanes) // (self.cell.lanes * self.programs.capacity)

    def resident(self) -> dict[str, Any]:
        """Base, router and one pack, and nothing else yet."""
        account = self.programs.base_bytes() + ROUTER_BYTES + self.form.bytes
        return {"account": account, "allocator": statistics()["bytes_in_use"]}

    def prompt(self, n: int) -> list[int]:
        return self.rng.integers(0, self.config.vocab_size, n).tolist()

    def ready(self) -> Device:
        if self.device is None:
            self.packs += [self.form.placed(buffer) for buffer in self.buffers[1:]]
            self.device = Device(self.params, self.programs)
        return self.device

    def row(self, lane: int, n_packs: int) -> tuple[int, list[str], list[float], list[Any]]:
        return lane, [f"pack {i}" for i in range(n_packs)], [0.7] * n_packs, self.packs[:n_packs]

    def filled(self, n_packs: int, length: int) -> Group:
        """Every lane takes in a prompt of its own; the group of them all."""
        device, rows = self.ready(), [self.row(lane, n_packs) for lane in range(self.cell.lanes)]
        for row in rows:
            ids, alone = self.prompt(length), device.group([row], n_packs)
            device.take_seat(row[0], Sampling(), ids)
            device.choose(alone, device.prefill(alone, chunks_of([ids], prefill_sizes(self.cell.lanes))))
        return device.group(rows, n_packs)

    def decoding(self, n_packs: int) -> dict[str, Any]:
        """Steps one after the other as the engine runs them: the next begins before the last one's token is read."""
        group = self.filled(n_packs, self.scale.prompt)
        device, steps = self.ready(), self.scale.steps
        with compilations() as compiled:
            run_steps(device, group, 5)
            seconds = [run_steps(device, group, steps) / steps for _ in range(self.scale.repeats)]
            single = [run_steps(device, group, steps, bursts=False) / steps for _ in range(self.scale.repeats)]
        begin = time.perf_counter()
        for _ in range(steps):
            token = device.step(group)
        dispatch = (time.perf_counter() - begin) / steps
        jax.block_until_ready(token)
        valid = self.scale.prompt + 5 + self.scale.repeats * steps
        step = stats.median(seconds)
        return {"step_s": step, "all_s": seconds, "single_step_s": stats.median(single), "dispatch_s": dispatch, "tok_s": self.cell.lanes / step,
                "valid": valid, "compilations": len(compiled)}  # fmt: skip

    def prefilling(self, n_tokens: int) -> dict[str, Any]:
        """A prompt without packs, in the engine's chunks, up to its last hidden state."""
        n_tokens = min(n_tokens, self.context)
        device, ids = self.ready(), self.prompt(n_tokens)
        group, chunks = device.group([self.row(0, 0)], 0), chunks_of([ids], prefill_sizes(self.cell.lanes))
        device.take_seat(0, Sampling(), ids)
        jax.block_until_ready(device.prefill(group, chunks))
        seconds = []
        for _ in range(2 * self.scale.repeats + 1):
            begin = time.perf_counter()
            jax.block_until_ready(device.prefill(group, chunks))
            seconds.append(time.perf_counter() - begin)
        return {"tokens": n_tokens, "seconds": stats.median(seconds), "tok_s": n_tokens / stats.median(seconds),
                "flops": prefill_flops(self.config, n_tokens)}  # fmt: skip

    def peak(self) -> dict[str, Any]:
        """The most that the account speaks of: every lane's whole context through both phases, all tap states kept
        until the packs are there, then steps that wait for each other."""
        device, lanes = self.ready(), range(self.cell.lanes)
        length = self.context - 8
        chunks = chunks_of([self.prompt(length)], prefill_sizes(self.cell.lanes))
        groups = [device.group([self.row(lane, SLOTS)], SLOTS) for lane in lanes]
        states = []
        for lane, group in zip(lanes, groups, strict=True):
            device.take_seat(lane, Sampling(), self.prompt(length))
            pooled = self.programs.empty_pool()
            for chunk in chunks:
                h, pooled = device.understand(group.seats, chunk, pooled)
                states.append(h)
        jax.block_until_ready(states)
        for lane, group in zip(lanes, groups, strict=True):
            for i, chunk in enumerate(chunks):
                last = device.fuse(group, chunk, states[lane * len(chunks) + i])
                jax.block_until_ready(last)
            device.choose(group, last)
        group = device.group([self.row(lane, SLOTS) for lane in lanes], SLOTS)
        run_steps(device, group, 4)
        account = sized(self.programs, self.form, Sizing(SLOTS, SLOTS), ROUTER_BYTES, None, self.context)
        del states
        return {"account": account.total, "components": account.components, "programs": account.programs,
                **statistics()}  # fmt: skip

    def trace(self) -> dict[str, Any] | None:
        """What the device does in a step, from its own profile; None where it gives none."""
        device = self.ready()
        found = {}
        for n_packs in (0, SLOTS):
            group = self.filled(n_packs, self.scale.prompt)
            run_steps(device, group, 3)
            found[str(n_packs)] = device_events(lambda group=group: run_steps(device, group, 2 * BURST), 2 * BURST)
        return found


def run_steps(device: Device, group: Group, n: int, *, bursts: bool = True) -> float:
    """Seconds of n steps, in bursts where the engine takes them so; tokens are read once the next are on their way."""
    burst = bursts and device.programs.bursts and n >= BURST
    begin, before = time.perf_counter(), None
    for _ in range(n // BURST if burst else n):
        tokens = device.burst(group) if burst else device.step(group)
        if before is not None:
            np.asarray(before)
        before = tokens
    np.asarray(before)
    return (time.perf_counter() - begin) * (n / (n // BURST * BURST) if burst else 1)


def _read_bytes(params: Any) -> int:
    """Of the base, what a step must read: all but an embedding that is not the head, too."""
    return tree_bytes(params) - (tree_bytes(params.embed) if params.head is not None else 0)


def layer_params(config: Any) -> int:
    """Weights of the linear maps of one layer."""
    from mbjax.core.lora import map_shapes

    return sum(n_out * n_in for n_out, n_in in map_shapes(config).values())


def prefill_flops(config: Any, n_tokens: int) -> int:
    """2 for every weight of the layers and token, and 4 E for every query head and pair of a token with one it sees.
    The head is not counted: prefill takes it for the last token only."""
    pairs = n_tokens * (n_tokens + 1) // 2
    maps = 2 * config.n_layers * layer_params(config) * n_tokens
    return maps + 4 * config.n_layers * config.n_heads * config.head_dim * pairs
