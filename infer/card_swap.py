"""Packs that come and go while a base decodes: how fast, and what a reader of its tokens notices. For `card.py`."""

import statistics as stats
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from card_cells import Cell
from card_child import Notes
from card_decode import Bench, run_steps
from card_decode import warm as warm_decode
from card_model import SLOTS, compilations, pack_buffers, statistics
from card_rates import transfer_rates

from mbjax.core.slots import Slot
from mbjax.engine.pack_form import PackForm

PACKS = 4  # in host memory, of which SLOTS are on the device
ALONE = 100  # swaps with nothing else going on

Place = Callable[[int], Slot]


def warm(cell: Cell, notes: Notes) -> None:
    warm_decode(_decoding(cell), notes)


def measure(cell: Cell, notes: Notes) -> None:
    """Each way of bringing packs in: `store` is the engine's own; `pinned` from page-locked memory that JAX holds."""
    bench = Bench(_decoding(cell), notes)
    buffers = pack_buffers(bench.form, PACKS)
    notes.put(rate=transfer_rates(bench.form.bytes))
    group = bench.filled(SLOTS, cell.scale.prompt)
    run_steps(bench.ready(), group, 5)
    swaps: dict[str, Any] = {}
    for way, place in ways(bench.form, buffers).items():
        try:
            swaps[way] = _swapping(bench, place, cell.scale.swaps)
        except Exception as error:  # noqa: BLE001 - each way is a result of its own
            swaps[way] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
        notes.put(swaps=swaps, **statistics())


def _decoding(cell: Cell) -> Cell:
    return Cell("decode", cell.shape, cell.dtype, 1)


def ways(form: PackForm, buffers: list[np.ndarray]) -> dict[str, Place]:
    """As the engine's store does it, from buffers as it keeps them, and from plain ones."""
    kept = [jax.block_until_ready(form.kept(buffer)) for buffer in buffers]
    return {
        "store": lambda i: form.placed(kept[i % PACKS]),
        "pageable": lambda i: form.placed(buffers[i % PACKS]),
    }


def _swapping(bench: Bench, place: Place, swaps: int) -> dict[str, Any]:
    """Seconds of a swap alone, then as many swaps as asked for, one before every second step, and the same number of
    steps without any. A gap is the time between two tokens that were read."""
    jax.block_until_ready(place(0))
    with compilations() as compiled:
        alone = []
        for i in range(ALONE):
            begin = time.perf_counter()
            bench.packs[SLOTS - 1] = place(i)
            jax.block_until_ready(bench.packs[SLOTS - 1])
            alone.append(time.perf_counter() - begin)
        still = _gaps(bench, None, 2 * swaps)
        moving = _gaps(bench, place, 2 * swaps)
    return {"median_s": stats.median(alone), "swaps": swaps + ALONE, "compilations": len(compiled),
            "gap_still_s": max(still), "step_still_s": stats.median(still), "gap_s": max(moving),
            "gap_p99_s": float(np.quantile(moving, 0.99)), "step_s": stats.median(moving)}  # fmt: skip


def _gaps(bench: Bench, place: Place | None, steps: int) -> list[float]:
    """A lane that is full begins its prompt anew, which is no gap between its tokens."""
    device, room = bench.ready(), bench.context - bench.scale.prompt - 16
    times: list[float] = []
    gaps: list[float] = []
    group, before = None, None
    for i in range(steps):
        if i % room == 0:
            group, before, times = bench.filled(SLOTS, bench.scale.prompt), None, []
        if place is not None and i % 2 == 0:
            bench.packs[SLOTS - 1] = place(i // 2)
            group = device.group([bench.row(0, SLOTS)], SLOTS)
        assert group is not None
        token = device.step(group)
        if before is not None:
            np.asarray(before)
            times.append(time.perf_counter())
            if len(times) > 1:
                gaps.append(times[-1] - times[-2])
        before = token
    return gaps
