"""The state of all lanes on the device, and the calls that move it on. One thread at a time may use it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mbjax.core.base import Base
from mbjax.core.cache import Cache
from mbjax.core.pack import Mix
from mbjax.core.router import Pooled
from mbjax.core.sampling import Sampling, lanes_of
from mbjax.engine.chunks import Chunk
from mbjax.engine.programs import Programs


@dataclasses.dataclass(frozen=True)
class Group:
    """The rows of a step and the packs they use; made once, used as long as nobody joins or leaves."""

    ids: tuple[str, ...]  # of the packs, one for each in the mix
    mix: Mix
    seats: jax.Array  # int32 [B]
    live: jax.Array  # int32 [B], 0 for rows that only fill up

    @property
    def rows(self) -> int:
        return self.seats.shape[0]


class Device:
    """Keys and values, lengths, next tokens and sampling of every lane, between the programs that take and return
    them."""

    def __init__(self, params: Base, programs: Programs) -> None:
        self.params, self.programs = params, programs
        self.reset()

    def reset(self) -> None:
        """Forgets every lane."""
        programs = self.programs
        self._layers, self._tap = programs.new_layers(), programs.new_tap()
        self._length = jax.device_put(np.zeros(programs.lanes, np.int32))
        self._board = programs.new_board()
        self._experts: dict[str, Any] = {}

    def group(self, rows: Sequence[tuple[int, Sequence[str], Sequence[float], Sequence[Any]]], installed: int) -> Group:
        """The group of (seat, pack ids, gates, packs) rows, filled up to numbers that programs are compiled for."""
        programs = self.programs
        seats = [seat for seat, *_ in rows]
        n_rows = next(n for n in programs.row_counts() if n >= len(seats))
        seats += [seat for seat in range(programs.lanes) if seat not in seats][: n_rows - len(seats)]
        packs = {pack: array for _, ids, _, arrays in rows for pack, array in zip(ids, arrays, strict=True)}
        names = list(packs)
        n_packs = next(n for n in programs.pack_counts(n_rows, max(installed, len(names))) if n >= len(names))
        gates = np.zeros((n_rows, n_packs), np.float32)
        for row, (_, ids, weights, _) in enumerate(rows):
            for pack, gate in zip(ids, weights, strict=True):
                gates[row, names.index(pack)] = gate
        names += names[:1] * (n_packs - len(names))
        live = np.asarray([row < len(rows) for row in range(n_rows)], np.int32)
        mix = Mix(tuple(packs[name] for name in names), jax.device_put(gates))
        return Group(tuple(names), mix, jax.device_put(np.asarray(seats, np.int32)), jax.device_put(live))

    def take_seat(self, seat: int, sampling: Sampling, ids: Sequence[int]) -> None:
        """Empties a lane for a request with these settings and prompt tokens."""
        one = lanes_of([(sampling, list(ids))], self.programs.config.vocab_size)
        where, n_prompt = np.asarray(seat, np.int32), np.asarray(len(ids), np.int32)
        self._length, self._board = self.programs.take_seat()(self._length, self._board, where, n_prompt, one)

    def understand(self, seats: jax.Array, chunk: Chunk, pooled: Pooled) -> tuple[jax.Array, Pooled]:
        """The first phase of one chunk: tap states [B, size, D], and what the router has read so far."""
        program = self.programs.understand(chunk.size, chunk.rows)
        h, self._layers, pooled = program(self.params, self._layers, seats, chunk.values, pooled)
        return h, pooled

    def fuse(self, group: Group, chunk: Chunk, h: jax.Array) -> jax.Array:
        """The second phase of one chunk: the last valid tokens' hidden states [B, D]."""
        program = self.programs.fuse(chunk.size, len(group.ids), group.rows)
        last, cache = program(self.params, group.mix, self._cache(group), group.seats, h, chunk.values)
        self._keep(cache, group)
        return last

    def whole(self, group: Group, chunk: Chunk) -> jax.Array:
        """Both phases of one chunk in one program, for packs that have a part in the first."""
        program = self.programs.whole(chunk.size, len(group.ids), group.rows)
        last, cache = program(self.params, group.mix, self._cache(group), group.seats, chunk.values)
        self._keep(cache, group)
        return last

    def prefill(self, group: Group, chunks: Sequence[Chunk]) -> jax.Array:
        """Prompts whose packs are known, as a routed one is taken in: how they were chosen changes no bit."""
        last, pooled = None, self.programs.empty_pool(group.rows)
        for chunk in chunks:
            jax.block_until_ready(last)  # a program that waits in the queue holds its temporaries already
            if self.programs.rereads and group.ids:
                last = self.whole(group, chunk)
            else:
                h, pooled = self.understand(group.seats, chunk, pooled)
                last = self.fuse(group, chunk, h)
        assert last is not None
        return last

    def choose(self, group: Group, h: jax.Array) -> jax.Array:
        """The first token after hidden states [B, D]: int32 [B]."""
        place = Cache((), self._length, seats=group.seats)
        token, self._board = self.programs.choose(group.rows)(self.params, h, place, self._board, group.live)
        return token

    def step(self, group: Group) -> jax.Array:
        """One step of a group: the next tokens int32 [B], on their way."""
        return self._steps(self.programs.decode(len(group.ids), group.rows), group)

    def burst(self, group: Group) -> jax.Array:
        """Several steps of a group: the next tokens int32 [BURST, B], on their way."""
        return self._steps(self.programs.burst(len(group.ids), group.rows), group)

    def _steps(self, program: jax.stages.Compiled, group: Group) -> jax.Array:
        cache, seats = self._cache(group), group.seats
        tokens, cache, self._board = program(self.params, group.mix, cache, seats, self._board, group.live)
        self._keep(cache, group)
        return tokens

    def verify(self, group: Group, draft: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """Greedy steps of one row along a draft int32 [DRAFT]: tokens [1, DRAFT + 1], and how many of them count."""
        program = self.programs.verify(len(group.ids))
        cache, seats, drafted = self._cache(group), group.seats, draft[None]
        found, count, cache, self._board = program(self.params, group.mix, cache, seats, self._board, drafted)
        self._keep(cache, group)
        return found, count

    def forget_experts(self, kept: Sequence[str]) -> None:
        """Drops what was cached for packs that left the device."""
        self._experts = {pack: kv for pack, kv in self._experts.items() if pack in kept}

    def _cache(self, group: Group) -> Cache:
        for pack in group.ids:
            if self.programs.expert is not None and pack not in self._experts:
                self._experts[pack] = self.programs.new_expert()
        experts = tuple(self._experts.get(pack) for pack in group.ids)
        return Cache(self._layers, self._length, experts, self._tap)

    def _keep(self, cache: Cache, group: Group) -> None:
        self._layers, self._length, self._tap = cache.layers, cache.length, cache.tap
        if self.programs.expert is not None:
            self._experts.update(zip(group.ids, cache.experts, strict=True))
