"""The routes of many prompts: batches of those that are taken in by the same chunks, as the engine takes in one."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from mbjax.core.decode import BUCKETS, chunk_sizes
from mbjax.engine.batch import alike, padded_capacity
from mbjax.engine.chunks import chunks_of
from mbjax.engine.device import Device
from mbjax.engine.reply import RouteItem
from mbjax.engine.routing import turn_states

if TYPE_CHECKING:
    from mbjax.engine.engine import Engine
    from mbjax.io.prompt import Prompt


def route_all(
    engine: "Engine",
    prompts: Sequence["Prompt"],
    progress: Callable[[int, int], None] | None = None,
    *,
    parts: bool = True,
    named: Sequence[str] | None = None,
) -> list[list[RouteItem]]:
    """The route of each prompt; without a router the base's own, which is empty. `progress(done, total)`. Without
    `parts` two packs are together whatever the prompt, as for texts that are not answered but given. `named` packs
    are not chosen, but may be those of two parts."""
    routes: list[list[RouteItem]] = [[] for _ in prompts]
    routing = engine.routing
    if routing is None or not prompts:
        return routes
    capacity = padded_capacity(max(sum(chunk_sizes(len(prompt.ids))) for prompt in prompts))
    base = engine.base
    programs = engine.batch_programs.of(capacity, engine.kv_dtype)
    device, n_lanes, done = Device(base.params, programs), programs.lanes, 0
    seats = jnp.asarray(np.arange(n_lanes, dtype=np.int32))
    for members in alike([prompt.ids for prompt in prompts], n_lanes):
        lanes = [prompts[members[min(lane, len(members) - 1)]] for lane in range(n_lanes)]
        cut = parts and not any(lane.raw for lane in lanes)
        pooled, states = programs.empty_pool(n_lanes), []
        for chunk in chunks_of([lane.ids for lane in lanes], BUCKETS, [lane.weights for lane in lanes]):
            h, pooled = device.understand(seats, chunk, pooled)
            if cut:
                states.append(h)
        turn = partial(turn_states, states, [lane.weights for lane in lanes]) if cut else None
        for i, route in zip(members, routing.routes(pooled, engine.gate_rule, turn, named), strict=False):
            routes[i] = route
        done += len(members)
        if progress is not None:
            progress(done, len(prompts))
    return routes
