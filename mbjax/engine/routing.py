"""Choosing packs for a prompt: the router's space, the packs' keys, and the programs that score them."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mbjax.core.pack import Mix
from mbjax.core.parts import order_of_parts, token_logits
from mbjax.core.router import GATE_RULE, Key, Pooled, Space, choose_packs, gates_for, score_pooled
from mbjax.engine.pack_form import stamp_of
from mbjax.engine.programs import tree_bytes
from mbjax.engine.reply import RouteItem
from mbjax.errors import InputError, MbjaxError
from mbjax.io.load import LoadedBase
from mbjax.io.pack_dir import read_pack
from mbjax.io.route_key import key_from
from mbjax.io.router_dir import ROUTER, load_router

if TYPE_CHECKING:
    from mbjax.engine.pack_store import PackStore


@dataclasses.dataclass(frozen=True)
class PackKey:
    key: Key
    threshold: float


class Routing:
    """Scores every pack that has a key for this router. `notes` say in one line each what cannot be used."""

    def __init__(self, space: Space, keys: dict[str, PackKey], notes: list[str], background_digest: str) -> None:
        self.space, self.keys, self.notes, self._background = space, keys, notes, background_digest
        self._read: dict[str, object] = {}

    @classmethod
    def load(cls, base: LoadedBase, packs: "PackStore") -> "Routing":
        """The router that lies among the packs, with their keys.

        Raises InputError where it is damaged or belongs to another base.
        """
        assert packs.directory is not None
        router = load_router(packs.directory / ROUTER, base)
        space = Space(jax.device_put(router.mean), jax.device_put(router.whitening))
        found = cls(space, {}, [], router.background_digest)
        found.read_keys(packs.paths)
        return found

    def read_keys(self, paths: dict[str, Path]) -> None:
        """Takes in the keys of packs that are new or were changed, and forgets those that are gone."""
        keys = {pack: own for pack, own in self.keys.items() if pack in paths}
        for pack, path in sorted(paths.items()):
            if self._read.get(pack) == (stamp := stamp_of(path)):
                continue
            self._read[pack] = stamp
            keys.pop(pack, None)
            try:
                keys[pack] = _read_key(path, self._background, self.space.whitening.shape[0])
            except MbjaxError as error:
                self.notes.append(f"{pack} is never chosen: {error}")
        self.keys = dict(sorted(keys.items()))

    def scores(self, pooled: Pooled) -> dict[str, float]:
        """Calibrated probabilities by pack, of one lane, pack by pack with one program: not even a last bit depends
        on what else is installed."""
        return {
            pack: float(np.asarray(score_pooled(self.space, own.key, pooled))[0]) for pack, own in self.keys.items()
        }

    def route(
        self,
        pooled: Pooled,
        rule: str = GATE_RULE,
        turn: Callable[[], Iterable[np.ndarray]] | None = None,
        named: Sequence[str] | None = None,
    ) -> tuple[list[RouteItem], dict[str, float]]:
        """What one lane calls for and the scores, or packs that are named. `turn` gives, chunk by chunk, the states
        float32 [T, D] of the tokens of the turn that is to be answered, as `unit_states` has them; without it no prompt
        is taken to be of two parts."""
        scores: dict[str, float] = {}
        if named is None:
            scores = self.scores(pooled)
            n_read = float(np.asarray(pooled.weight)[0])
            chosen = choose_packs(scores, {pack: own.threshold for pack, own in self.keys.items()}, n_read)
            route = items_of(chosen, [scores[pack] for pack in chosen], rule)
        else:
            route = items_of(named, [None] * len(named), rule)
        if turn is not None and len(route) == 2:
            route = self._in_parts(route, turn())
        return route, scores

    def knows(self, packs: Sequence[str]) -> bool:
        """Whether each of them has a key."""
        return all(pack in self.keys for pack in packs)

    def _in_parts(self, route: list[RouteItem], states: Iterable[np.ndarray]) -> list[RouteItem]:
        """A route of two packs, one after the other where the turn is of two parts."""
        own = [key for item in route if (key := self.keys.get(item.pack)) is not None]
        if len(own) < len(route):  # one without a key can be of no part
            return route
        logits = np.concatenate([token_logits(self.space, [one.key for one in own], h) for h in states])
        order = order_of_parts(logits, [one.threshold for one in own])
        if order is None:
            return route
        return [dataclasses.replace(route[i], gate=1.0, part=part) for part, i in enumerate(order, 1)]

    def routes(
        self,
        pooled: Pooled,
        rule: str = GATE_RULE,
        turn: Callable[[int], Iterable[np.ndarray]] | None = None,
        named: Sequence[str] | None = None,
    ) -> list[list[RouteItem]]:
        """`route` of each of several lanes; `turn` gives the states of a lane's."""
        total, weight = np.asarray(pooled.total), np.asarray(pooled.weight)
        found = []
        for lane in range(len(weight)):
            own = Pooled(*(jax.device_put(sums[lane : lane + 1]) for sums in (total, weight)))
            found.append(self.route(own, rule, None if turn is None else partial(turn, lane), named)[0])
        return found


class Router:
    """The routing of a store: loaded when first asked for, and kept up with what is installed."""

    def __init__(self, base: LoadedBase, packs: "PackStore", notes: list[str]) -> None:
        self._base, self._packs, self._notes = base, packs, notes
        self._routing: Routing | None = None
        self._loaded, self._seen = False, None

    @property
    def routing(self) -> Routing | None:
        """None, and a note, where there is no router beside the packs or it cannot be used."""
        if not self._packs.ids():
            return None
        seen = dict(self._packs.paths)
        if not self._loaded:
            self._loaded, self._seen = True, seen
            self._routing = self._load()
        elif seen != self._seen and self._routing is not None:
            self._seen = seen
            self._routing.read_keys(seen)
            self._tell(self._routing)
        return self._routing

    @property
    def absent(self) -> bool:
        """Whether no router lies beside the packs: who names packs need not hear of it."""
        directory = self._packs.directory
        return directory is None or not (directory / ROUTER).is_dir()

    def bytes(self) -> int:
        """Of space and keys, where a request has asked for them."""
        found = self._routing
        return 0 if found is None else tree_bytes((found.space, [own.key for own in found.keys.values()]))

    def warm_up(self, pooled: Pooled) -> None:
        """Compiles what scores a pack."""
        if self.routing is not None:
            jax.block_until_ready(self.routing.scores(pooled))

    def _load(self) -> Routing | None:
        if self.absent:
            self._notes.append(f"no router in {self._packs.directory}: the base answers alone; run mbjax train router")
            return None
        try:
            found = Routing.load(self._base, self._packs)
        except InputError as error:
            self._notes.append(f"no packs are chosen by themselves: {error}")
            return None
        self._tell(found)
        return found

    def _tell(self, routing: Routing) -> None:
        self._notes += routing.notes
        routing.notes = []


def _read_key(path: Path, background_digest: str, width: int) -> PackKey:
    stored = read_pack(path)
    if stored.route is None:
        raise InputError(f"{path} has no route key; run mbjax pack calibrate")
    if stored.route.background_digest != background_digest:
        raise InputError(f"{path} was calibrated for another router; run mbjax pack calibrate")
    return PackKey(key_from(stored.route.tensors, width, path), stored.route.threshold)


def items_of(packs: Sequence[str], scores: Sequence[float | None], rule: str) -> list[RouteItem]:
    """Packs that answer together; a score of None is that of one that was named."""
    return [RouteItem(*item) for item in zip(packs, gates_for(scores, rule), scores, strict=True)]


def turn_states(states: Sequence[jax.Array], weights: Sequence[np.ndarray], lane: int) -> Iterator[np.ndarray]:
    """The states float32 [T, D] of the last turn's tokens of one lane, chunk by chunk, as `unit_states` has them; on the
    host, where no number of tokens has to be compiled for.

    states [B, C, D] at the tap are those of the prompts' chunks, the last one padded; weights float32 [N] those of the
    router for each lane: the last tokens of weight 1 that stand side by side are the last turn, those before may be of
    turns that a short one borrows from.
    """
    whole = np.flatnonzero(weights[lane] == 1)
    last = whole[max(np.flatnonzero(np.diff(whole) > 1) + 1, default=0) :]
    begin, end = (int(last[0]), int(last[-1]) + 1) if last.size else (0, 0)
    at = 0
    for chunk in states:
        own = np.asarray(chunk)[lane]
        h = own[max(begin - at, 0) : max(end - at, 0)].astype(np.float32)
        yield h / np.sqrt(np.mean(np.square(h), axis=-1, keepdims=True) + 1e-6)
        at += len(own)


def mix_of(packs: Any, gates: Sequence[float], n_lanes: int = 1) -> Mix:
    """The same packs and gates for every lane."""
    return Mix(tuple(packs), jax.device_put(np.tile(np.asarray(gates, np.float32), (n_lanes, 1))))
