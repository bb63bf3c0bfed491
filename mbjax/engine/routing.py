"""Choosing packs for a prompt: the router's space, the packs' keys, and the programs that score them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.cache import Cache
from mbjax.core.pack import Mix
from mbjax.core.router import GATE_RULE, Key, Pooled, Space, choose_packs, gates_for, score_pooled
from mbjax.engine.reply import RouteItem
from mbjax.engine.understanding import Understood
from mbjax.errors import InputError, MbjaxError
from mbjax.io.load import LoadedBase
from mbjax.io.pack_dir import read_pack
from mbjax.io.route_key import key_from
from mbjax.io.router_dir import ROUTER, load_router

if TYPE_CHECKING:
    from mbjax.engine.engine import Engine, Selection
    from mbjax.engine.pack_slots import PackSlots
    from mbjax.io.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class PackKey:
    key: Key
    threshold: float


class Routing:
    """Scores every pack that has a key for this router. `notes` say in one line each what cannot be used."""

    def __init__(self, space: Space, keys: dict[str, PackKey], notes: list[str]) -> None:
        self.space, self.keys, self.notes = space, keys, notes

    @classmethod
    def load(cls, base: LoadedBase, packs: "PackSlots") -> "Routing | None":
        """The router that lies among the packs, with their keys; None where there is none.

        Raises InputError where it is damaged or belongs to another base.
        """
        if packs.directory is None or not (packs.directory / ROUTER).is_dir():
            return None
        router = load_router(packs.directory / ROUTER, base)
        space = Space(jnp.asarray(router.mean), jnp.asarray(router.whitening))
        keys, notes = {}, []
        for pack_id, path in sorted(packs.paths.items()):
            try:
                keys[pack_id] = _read_key(path, router.background_digest, router.whitening.shape[0])
            except MbjaxError as error:
                notes.append(f"{pack_id} is never chosen: {error}")
        return cls(space, keys, notes)

    def scores(self, pooled: Pooled) -> dict[str, float]:
        """Calibrated probabilities by pack, of one lane, pack by pack with one program: not even a last bit depends
        on what else is installed."""
        return {
            pack: float(np.asarray(score_pooled(self.space, own.key, pooled))[0]) for pack, own in self.keys.items()
        }

    def routes(self, pooled: Pooled, rule: str = GATE_RULE) -> list[list[RouteItem]]:
        """What each lane calls for."""
        thresholds = {pack: own.threshold for pack, own in self.keys.items()}
        total, weight = np.asarray(pooled.total), np.asarray(pooled.weight)
        found = []
        for lane in range(len(weight)):
            scores = self.scores(Pooled(jnp.asarray(total[lane : lane + 1]), jnp.asarray(weight[lane : lane + 1])))
            chosen = choose_packs(scores, thresholds)
            gates = gates_for([scores[pack] for pack in chosen], rule)
            found.append([RouteItem(pack, gate, scores[pack]) for pack, gate in zip(chosen, gates, strict=True)])
        return found


def _read_key(path: Path, background_digest: str, width: int) -> PackKey:
    stored = read_pack(path)
    if stored.route is None:
        raise InputError(f"{path} has no route key; run mbjax pack calibrate")
    if stored.route.background_digest != background_digest:
        raise InputError(f"{path} was calibrated for another router; run mbjax pack calibrate")
    return PackKey(key_from(stored.route.tensors, width, path), stored.route.threshold)


def take_in(engine: "Engine", prompt: "Prompt") -> tuple["Selection", jax.Array, Cache]:
    """Prefill of a prompt whose packs the router chooses in between: what it chose, the last token's hidden state
    [1, D] and the cache. Nothing selected: the base's own programs, and no pack among their arguments."""
    understood = engine.understand(prompt)
    selection = engine.routed(understood.pooled)
    programs, params = selection.programs, engine.base.params
    cache = engine.take_cache(programs, understood.layers)
    if programs.rereads:
        from mbjax.engine.stream import prefill_prompt

        return selection, *prefill_prompt(programs, params, selection.mix, cache, prompt.ids)
    return selection, *fuse_prompt(engine, selection, cache, understood)


def fuse_prompt(
    engine: "Engine", selection: "Selection", cache: Cache, understood: Understood
) -> tuple[jax.Array, Cache]:
    """The second phase over all chunks."""
    h = None
    for chunk in understood.chunks:
        program = selection.programs.fuse(chunk.h.shape[1])
        h, cache = program(engine.base.params, selection.mix, cache, chunk.h, chunk.n_valid)
    assert h is not None
    return h, cache


def used(route: Sequence[RouteItem]) -> list[RouteItem]:
    """The packs of a route that take part: one that could not be loaded has a gate of 0."""
    return [item for item in route if item.gate > 0]


def mix_of(packs: tuple, gates: Sequence[float], n_lanes: int = 1) -> Mix:
    """The same packs and gates for every lane."""
    return Mix(packs, jnp.asarray(np.tile(np.asarray(gates, np.float32), (n_lanes, 1))))
