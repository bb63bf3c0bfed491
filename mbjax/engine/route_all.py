"""The routes of many prompts: batches of those that are taken in by the same chunks, as the engine takes in one."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mbjax.core.decode import chunk_sizes
from mbjax.engine.batch import LANES, alike, padded_capacity
from mbjax.engine.programs import Programs
from mbjax.engine.reply import RouteItem

if TYPE_CHECKING:
    from mbjax.engine.engine import Engine
    from mbjax.io.prompt import Prompt


def route_all(
    engine: "Engine", prompts: Sequence["Prompt"], progress: Callable[[int, int], None] | None = None
) -> list[list[RouteItem]]:
    """The route of each prompt; without a router the base's own, which is empty. `progress(done, total)`."""
    routes: list[list[RouteItem]] = [[] for _ in prompts]
    if engine.routing is None or not prompts:
        return routes
    capacity = padded_capacity(max(sum(chunk_sizes(len(prompt.ids))) for prompt in prompts))
    base = engine.base
    programs = Programs(base.params, base.config, batch=LANES, capacity=capacity, kv_dtype=engine.kv_dtype)
    layers, done = programs.new_layers(), 0
    for members in alike([prompt.ids for prompt in prompts]):
        lanes = [prompts[members[min(lane, len(members) - 1)]] for lane in range(LANES)]
        ids, weights = [lane.ids for lane in lanes], [lane.weights for lane in lanes]
        found = programs.understanding.run(base.params, layers, ids, weights)
        layers = found.layers
        for i, route in zip(members, engine.routing.routes(found.pooled, engine.gate_rule), strict=False):
            routes[i] = route
        done += len(members)
        if progress is not None:
            progress(done, len(prompts))
    return routes
