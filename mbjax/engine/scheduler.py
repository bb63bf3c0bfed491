"""The engine's thread: requests join and leave a batch between steps, and long prompts are taken in between them."""

import atexit
import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np

from mbjax.engine.chunks import chunks_of
from mbjax.engine.device import Device, Group
from mbjax.engine.drafting import Drafter
from mbjax.engine.pack_store import PackStore
from mbjax.engine.programs import BURST, DRAFT, prefill_sizes
from mbjax.engine.reply import RouteItem, in_turns
from mbjax.engine.request import End, Request
from mbjax.engine.routing import turn_states
from mbjax.errors import FailureError, InputError

IDLE_S = 0.05  # how often deadlines are looked at while nothing can be computed


@dataclasses.dataclass(frozen=True)
class Flight:
    """Choices of tokens that are being computed: int32 [B], or [BURST, B], and the request of each row, with its turn
    when they began."""

    tokens: jax.Array
    requests: tuple[Request, ...]
    turns: tuple[int, ...]

    @classmethod
    def of(cls, tokens: jax.Array, requests: tuple[Request, ...]) -> "Flight":
        return cls(tokens, requests, tuple(request.turn for request in requests))


class Scheduler:
    """Runs requests on a device. All methods but `submit`, `cancel` and `close` belong to its own thread.

    Between two steps at most one chunk of a prompt is taken in, so that no prompt stalls the others for longer.
    """

    def __init__(
        self,
        device: Device,
        store: PackStore,
        *,
        route: Callable[..., tuple[list[RouteItem], dict[str, float]]],
        note: Callable[[str], None],
        slots: int,
        most_waiting: int,
        drafts: bool,
        between: Sequence[int],
    ) -> None:
        """`route` gives packs, gates and scores: from the packs that were named, what the router has read, and a call
        that gives the states of the last turn. `note` takes what a user should hear of. `between` is written
        between the answers of one turn and the next."""
        self._device, self._store, self._route, self._note = device, store, route, note
        self._slots, self._most_waiting, self._between = slots, most_waiting, between
        self._waiting: collections.deque[Request] = collections.deque()
        self._seated: list[Request] = []
        self._flights: collections.deque[Flight] = collections.deque()
        self._group: tuple[tuple[Request, ...], Group] | None = None  # that of the last step
        self._drafter = Drafter(enabled=drafts)
        self._wake = threading.Condition()
        self._news, self._closed, self._landed = False, False, 0.0
        store.on_change = self.wake
        self._thread = threading.Thread(target=self._run, name="mbjax-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread that is inside XLA when the interpreter ends aborts the process

    def submit(self, request: Request) -> None:
        """Puts a request in line. Raises FailureError where the line is full, or the engine is closed."""
        with self._wake:
            if self._closed:
                raise FailureError("the engine is closed")
            if len(self._waiting) >= self._most_waiting:
                raise FailureError(f"{len(self._waiting)} requests wait already; try again when some have ended")
            self._waiting.append(request)
            self._news = True
            self._wake.notify()

    def cancel(self, request: Request) -> None:
        request.cancelled = True
        self.wake()

    def wake(self) -> None:
        with self._wake:
            self._news = True
            self._wake.notify()

    def close(self) -> None:
        """Cancels what is left and waits for the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        atexit.unregister(self.close)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                busy = self._seated or self._waiting or self._flights
                if not self._closed and not self._news:
                    self._wake.wait(IDLE_S if busy else None)
                self._news = False
                if self._closed:
                    break
            try:
                while self._turn():
                    pass
            except Exception as error:  # noqa: BLE001 - the device is in no known state: nobody's lane can go on
                self._fail_all(error)
        for request in [*self._seated, *self._waiting]:
            self._end(request, End("cancelled"))
        self._waiting.clear()

    def _turn(self) -> bool:
        """One round; False where there was nothing to do."""
        if self._closed:
            return False
        self._sweep()
        self._admit()
        taken_in = self._prefill()
        stepped = self._step()
        landed = len(self._flights) - (1 if stepped else 0)
        for _ in range(landed):
            self._land()
        return taken_in or stepped or landed > 0

    def _sweep(self) -> None:
        """Ends what was cancelled or came too late."""
        for request in [*self._seated, *self._waiting]:
            if request.cancelled or request.overdue():
                self._end(request, End("cancelled" if request.cancelled else "deadline"))

    def _admit(self) -> None:
        """Gives free lanes to those who have waited longest."""
        taken = {request.seat for request in self._seated}
        for seat in range(self._device.programs.lanes):
            with self._wake:
                if seat in taken or not self._waiting:
                    continue
                request = self._waiting.popleft()
            request.seat = seat
            self._seated.append(request)
            request.mark("start")
            sizes = prefill_sizes(self._device.programs.lanes)
            request.chunks = chunks_of([request.prompt.ids], sizes, [request.prompt.weights])
            request.seats = jax.device_put(np.asarray([seat], np.int32))
            self._begin(request)

    def _begin(self, request: Request) -> None:
        """Empties a request's lane for its prompt."""
        request.read = request.at = request.begun = 0
        request.pooled, request.group = self._device.programs.empty_pool(), None
        self._device.take_seat(request.seat, request.sampling, request.prompt.ids)

    def _prefill(self) -> bool:
        """One chunk of the first prompt that can go on; False where none can."""
        for request in list(self._seated):
            if request.begun == 0 and not request.ended:
                try:
                    if self._prefill_chunk(request):
                        return True
                except InputError as error:
                    self._end(request, End("failed", error))
                    return True
        return False

    def _prefill_chunk(self, request: Request) -> bool:
        """The next chunk of a prompt, in its first phase or its second; False where its packs are still to come.

        Where the router chooses, or orders two that were named, it must have read all of the prompt. One pack that was
        named takes each chunk as soon as it is there: nothing of a long prompt is then kept between the phases.
        """
        unread = self._reads_first(request) and request.read < len(request.chunks)
        if unread and (request.reads_whole or not request.states or not self._has_packs(request)):
            if request.ended:
                return True
            chunk = request.chunks[request.read]
            _wait_for(request)
            assert request.pooled is not None and request.seats is not None
            h, request.pooled = self._device.understand(request.seats, chunk, request.pooled)
            request.states.append(h)
            request.read += 1
            return True
        if not self._has_packs(request):
            return request.ended
        group, chunk = request.group, request.chunks[request.at]
        assert group is not None
        _wait_for(request)
        if self._device.programs.rereads and group.ids:
            request.last = self._device.whole(group, chunk)
        else:
            request.last = self._device.fuse(group, chunk, request.states.pop(0))
        request.at += 1
        if request.at == len(request.chunks):
            self._first(request, group)
        return True

    def _has_packs(self, request: Request) -> bool:
        return request.group is not None or self._choose_packs(request)

    def _reads_first(self, request: Request) -> bool:
        """Whether the base's own first phase is needed: not for packs that have a part in it and were forced."""
        return request.reads_whole or not (self._device.programs.rereads and request.packs)

    def _first(self, request: Request, group: Group) -> None:
        assert request.last is not None
        request.begun, request.states = 1, []
        self._flights.append(Flight.of(self._device.choose(group, request.last), (request,)))
        request.last = None

    def _choose_packs(self, request: Request) -> bool:
        """Route and packs of a request whose prompt has been read; False where they are still to come."""
        if request.route is None:
            turn = partial(turn_states, request.states, [request.prompt.weights], 0)
            turn = turn if request.reads_whole and not request.prompt.raw else None
            request.route, request.scores = self._route(request.packs, request.pooled, turn)
            request.turns = in_turns(request.route)
            if request.scores_only:
                self._end(request, End("stop"))
                return False
        now = request.turns[request.turn]
        ids, gates = tuple(item.pack for item in now), [item.gate for item in now]
        # of packs that were named all must be there before the first word
        held = ids if request.packs is None or request.turn else request.packs
        try:
            packs = self._store.try_hold(held)
        except InputError as error:
            if request.packs is not None:  # who names a pack wants that or nothing
                raise
            self._note(f"the base answers alone: {error}")
            request.route = [dataclasses.replace(i, gate=0.0) if i in now else i for i in request.route]
            request.turns[request.turn] = []
            ids, gates, held, packs = (), [], (), ()
        if packs is None:
            return False
        request.held = held
        there = dict(zip(held, packs, strict=True))
        self._store.prefetch([item.pack for later in request.turns[request.turn + 1 :] for item in later])
        self._device.forget_experts(list(self._store.device))
        request.group = self._device.group([(request.seat, ids, gates, [there[pack] for pack in ids])], self._slots)
        return True

    def _step(self) -> bool:
        """One step of all lanes that decode; False where none does."""
        rows = tuple(r for r in self._seated if 0 < r.begun < r.room and not r.ended)
        if not rows:
            return False
        alone = len(rows) == 1 and len(self._seated) == 1
        if alone and rows[0].draftable and self._drafter.willing() and self._draft(rows[0]):
            return True
        group, burst = self._group_of(rows), self._may_burst(rows)
        for request in rows:
            request.begun += BURST if burst else 1
        self._flights.append(Flight.of(self._device.burst(group) if burst else self._device.step(group), rows))
        return True

    def _may_burst(self, rows: tuple[Request, ...]) -> bool:
        """Whether several steps may be taken at once: nobody waits for what comes between them, and all want as many."""
        alone = self._device.programs.bursts and not self._waiting and len(rows) == len(self._seated)
        return alone and all(request.begun + BURST <= request.room for request in rows)

    def _draft(self, request: Request) -> bool:
        """Several tokens at once, where the text so far says what may follow; False where it does not.

        A token that is still being computed is part of the guess, so that looking in vain keeps no step waiting.
        """
        known, turn = len(request.tokens), request.turn
        follows = self._drafter.guess(request.prompt.ids, request.tokens[request.given :])
        if follows is None:
            return False
        while self._flights:
            self._land()
        if request.ended or request.turn != turn:
            return True
        landed, room = request.tokens[known:], self._device.programs.capacity - len(request.prompt.ids) - request.begun
        draft = self._drafter.rest_of(follows, landed)
        if draft is None or room < DRAFT + 1 or request.group is None:
            return False
        with self._drafter.timed():
            found, count = self._device.verify(request.group, draft)
            n = int(np.asarray(count)[0])
        self._drafter.saw(n)
        for token in np.asarray(found)[0, :n].tolist():
            if request.turn == turn:
                request.begun += 1
            self._give(request, token, turn)
        return True

    def _group_of(self, rows: tuple[Request, ...]) -> Group:
        if len(rows) == 1 and rows[0].group is not None:
            return rows[0].group
        if self._group is None or self._group[0] != rows:
            self._group = rows, self._device.group([self._row(request) for request in rows], self._slots)
        return self._group[1]

    def _row(self, request: Request) -> tuple[int, Sequence[str], Sequence[float], Sequence[object]]:
        own = request.group
        assert own is not None
        gates = [item.gate for item in request.turns[request.turn]]
        return request.seat, own.ids, gates, own.mix.packs

    def _land(self) -> None:
        """Hands out the oldest tokens under way."""
        flight, since = self._flights.popleft(), self._landed
        steps = np.atleast_2d(np.asarray(flight.tokens)).tolist()
        self._landed = time.perf_counter()
        if len(flight.requests) == len(self._seated) == 1 and flight.requests[0].begun > 2:
            self._drafter.step_took((self._landed - since) / len(steps))
        for tokens in steps:
            for request, turn, token in zip(flight.requests, flight.turns, tokens, strict=False):
                self._give(request, token, turn)

    def _give(self, request: Request, token: int, turn: int) -> None:
        if request.ended or request.turn != turn:  # a step that had begun before the end was known
            return
        request.mark("end")
        request.marks.setdefault("first", request.marks["end"])
        if token in request.ends:
            self._end_turn(request, End("stop"))
            return
        self._hand_out(request, token)
        if len(request.tokens) - request.given >= request.room:
            self._end_turn(request, End("length"))

    def _hand_out(self, request: Request, token: int) -> None:
        request.tokens.append(token)
        request.tell(token)

    def _end_turn(self, request: Request, end: End) -> None:
        """Lets the packs of the next turn answer, or ends the request where there are none, or no room for them."""
        last, room = request.turn + 1 == len(request.turns), request.max_tokens - len(request.tokens)
        left_out = not last and room <= len(self._between)
        request.cut_off = request.cut_off or left_out or end.reason == "length"
        if last or left_out:
            self._end(request, End("length") if request.cut_off else end)
            return
        for token in self._between:
            self._hand_out(request, token)
        request.turn, request.given = request.turn + 1, len(request.tokens)
        self._release(request)
        self._begin(request)
        self._group = None

    def _end(self, request: Request, end: End) -> None:
        request.ended = True
        request.states, request.last = [], None
        if request in self._seated:
            self._seated.remove(request)
            self._group = None
        with self._wake:
            if request in self._waiting:
                self._waiting.remove(request)
        self._release(request)
        request.tell(end)

    def _release(self, request: Request) -> None:
        if request.held:
            held, request.held = request.held, ()
            self._store.release(held)

    def _fail_all(self, error: Exception) -> None:
        self._flights.clear()
        for request in list(self._seated):
            self._end(request, End("failed", FailureError(f"the engine failed: {type(error).__name__}: {error}")))
        self._device.reset()


def _wait_for(request: Request) -> None:
    """Until a prompt's newest chunk is done: a program that waits in the queue holds its temporaries."""
    jax.block_until_ready((request.states[-1:], request.last))
