"""Prompts taken in on an engine's own programs, without its thread: the bits that promises are about."""

import numpy as np

from mbjax.core.sampling import Sampling
from mbjax.engine.chunks import chunks_of
from mbjax.engine.device import Device
from mbjax.engine.engine import Engine
from mbjax.engine.programs import prefill_sizes


def hidden_of(engine: Engine, prompt: str, pack: str | None = None) -> tuple[list[str], np.ndarray]:
    """The packs, those that the router chooses if `pack` is not given, and the hidden state [1, D] that the first token
    is chosen from."""
    read, device = engine.read(prompt), Device(engine.base.params, engine.programs)
    device.take_seat(0, Sampling(), read.ids)
    chunks = chunks_of([read.ids], prefill_sizes(engine.lanes), [read.weights])
    if pack is None:
        pooled = pooled_of(engine, prompt)
        assert engine.routing is not None
        selection = engine.selection(engine.routing.route(pooled, engine.gate_rule)[0])
    else:
        selection = engine.select(pack)
    used = [item for item in selection.route if item.gate > 0]
    ids, gates = [item.pack for item in used], [item.gate for item in used]
    group = device.group([(0, ids, gates, selection.mix.packs)], engine.sizing.slots)
    return ids, np.asarray(device.prefill(group, chunks))


def pooled_of(engine: Engine, prompt: str):
    """What the router reads of a prompt."""
    read, device = engine.read(prompt), Device(engine.base.params, engine.programs)
    pooled, seats = engine.programs.empty_pool(), np.zeros(1, np.int32)
    for chunk in chunks_of([read.ids], prefill_sizes(engine.lanes), [read.weights]):
        pooled = device.understand(np.asarray(seats), chunk, pooled)[1]
    return pooled
