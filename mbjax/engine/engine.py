"""The Python inference API: one base, the packs beside it, and requests."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from mbjax.core.fused import bundled
from mbjax.core.pack import Mix
from mbjax.core.router import GATE_RULE, RESIDENT
from mbjax.core.sampling import Sampling
from mbjax.engine.account import Account, Sizing, check_context, sized
from mbjax.engine.answering import Answering, Text
from mbjax.engine.batch import BatchPrograms
from mbjax.engine.compile_cache import use_compile_cache
from mbjax.engine.device import Device
from mbjax.engine.host_memory import return_large_blocks
from mbjax.engine.pack_store import PackStore
from mbjax.engine.plan import DEFAULT_CONTEXT, Installed, Planned, Wishes, require
from mbjax.engine.predictor import Predictor
from mbjax.engine.programs import kv_dtype_of, shapes_of
from mbjax.engine.reply import BETWEEN_PARTS, Memory, RouteItem, used
from mbjax.engine.request import Request
from mbjax.engine.routing import Router, Routing, items_of, mix_of
from mbjax.engine.scheduler import Scheduler
from mbjax.engine.sizes import parse_bytes
from mbjax.errors import InputError
from mbjax.io.load import LoadedBase, load_base
from mbjax.io.prompt import Prompt, read_prompt

MOST_WAITING = 256


@dataclasses.dataclass(frozen=True)
class Selection:
    """Packs chosen for a prompt, as one mix."""

    route: list[RouteItem]
    mix: Mix


class Engine(Answering):
    """Answers with one base on one device; safe to use from several threads, and from an event loop.

    Use `Engine.load(name)`, as a context manager or with `close`. `context` is the most positions a conversation may
    fill, `lanes` how many are answered at once. `packs` is a directory of packs. The shape that all of them are padded
    to is fixed at the start, so that using another one compiles nothing; one that is put there later must fit.
    """

    def __init__(
        self,
        base: LoadedBase,
        *,
        packs: Path | None = None,
        context: int = DEFAULT_CONTEXT,
        lanes: int = 1,
        kv_dtype: str = "auto",
        budget: int | None = None,
        planned: Planned | None = None,
        force_base: bool = False,
        gate_rule: str = GATE_RULE,
        most_waiting: int = MOST_WAITING,
        drafts: bool = True,
    ) -> None:
        """`planned` is what a budget was planned with, and its programs; made here if not given."""
        check_context(context, base.config, base.name)
        outline = dataclasses.replace(base, params=bundled(shapes_of(base.params), base.config))
        self.context, self.lanes, self.kv_dtype = context, lanes, kv_dtype_of(base.params, kv_dtype)
        self.packs = PackStore(outline, packs, force_base=force_base)
        self.gate_rule, self._most_waiting, self._drafts = gate_rule, most_waiting, drafts
        self.notes: list[str] = []  # what a user should hear of
        self.router = Router(outline, self.packs, self.notes)
        form, installed = (None, None) if packs is None else (self.packs.form, len(self.packs.paths))
        planned = planned or Planned.of(outline.params, base.config, form, context, lanes, self.kv_dtype)
        self.programs, self._router_bytes = planned.programs, planned.router
        self.programs.begin()
        self.base = dataclasses.replace(base, params=bundled(base.params, base.config, base.release))
        self.batch_programs = BatchPrograms(self.base.params, self.base.config)  # of evaluations, none until then
        self.sizing = planned.fitted(installed, budget) if budget is not None else Sizing.of(installed)
        self.predictor = Predictor()
        self._budget, self._peak, self._lock = budget, 0, threading.RLock()
        self._scheduler: Scheduler | None = None
        self._closed = False
        self.packs.limit(self.sizing.slots, self.sizing.kept)
        self.packs.prefetch([RESIDENT])

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        packs: str | Path | None = None,
        dtype: str = "auto",
        context: int | None = None,
        lanes: int = 1,
        kv_dtype: str = "auto",
        budget: str | int | None = None,
        force_base: bool = False,
        gate_rule: str = GATE_RULE,
        most_waiting: int = MOST_WAITING,
        drafts: bool = True,
    ) -> "Engine":
        """Loads a base (catalog name, HF directory or GGUF file) and makes an engine of it.

        Args:
          packs: a directory of packs.
          dtype: of the weights, as in `load_base`.
          context: the most positions of a conversation; 2048 or the base's own limit.
          lanes: requests that are answered at once, 1 to 16; more wait in a line of at most `most_waiting`.
          kv_dtype: of the KV cache: float32, bfloat16, int8, or auto: that of the weights, bfloat16 where they are
            quantised.
          budget: the most bytes that the engine may hold ("4GiB"). What does not fit is refused with the table before
            anything is allocated, and every program is compiled at once: its temporaries count.
          force_base: lets in packs that were made for another base.
          drafts: whether greedy answers may be sped up by drafts; they stay the same.
        """
        use_compile_cache()
        return_large_blocks()
        size = parse_bytes(budget) if isinstance(budget, str) else budget
        directory, planned = Path(packs) if packs is not None else None, None
        if size is not None:
            wishes = Wishes(dtype, kv_dtype, context, lanes, Installed.at(directory), size)
            planned = require(name_or_path, wishes)
        base = load_base(name_or_path, dtype=dtype)
        return cls(
            base,
            packs=directory,
            context=min(DEFAULT_CONTEXT, base.config.max_context) if context is None else context,
            lanes=lanes,
            kv_dtype=kv_dtype,
            budget=size,
            planned=planned,
            force_base=force_base,
            gate_rule=gate_rule,
            most_waiting=most_waiting,
            drafts=drafts,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancels what is running and ends the engine's threads; it can be called twice."""
        with self._lock:
            self._closed, scheduler, self._scheduler = True, self._scheduler, None
        if scheduler is not None:
            scheduler.close()
        self.packs.close()

    def request(
        self,
        prompt: Prompt,
        deliver: Any,
        *,
        pack: str = "auto",
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        timeout: float | None = None,
        ends: frozenset[int] | None = None,
        scores_only: bool = False,
        drafts: bool = True,
    ) -> Request:
        """Begins a request whose tokens go to `deliver`, see `Request`. `ends` are the ids that close an answer, the
        base's own if not given."""
        if max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}; it must be at least 1")
        self.check_length(prompt)
        packs = None if self.routes(pack) else self.packs.check(pack_ids(pack))
        self.packs.prefetch(self.predictor.likely(self.sizing.slots) if packs is None else packs)
        request = Request(
            prompt=prompt,
            packs=packs,
            reads_whole=packs is None or (not prompt.raw and self.may_be_parts(packs)),
            max_tokens=min(max_tokens, self.context - len(prompt.ids) + 1),
            sampling=sampling or Sampling(),
            ends=self.base.tokenizer.eos_ids if ends is None else ends,
            deliver=deliver,
            deadline=None if timeout is None else time.monotonic() + timeout,
            scores_only=scores_only,
            drafts=drafts,
        )
        self.scheduler.submit(request)
        return request

    def cancel(self, request: Request) -> None:
        if self._scheduler is not None:
            self._scheduler.cancel(request)

    @property
    def routing(self) -> Routing | None:
        """The router beside the packs; None, and a note, where there is none or it cannot be used."""
        return self.router.routing

    @property
    def scheduler(self) -> Scheduler:
        """The engine's thread, started with the first request."""
        with self._lock:
            if self._closed:
                raise InputError("the engine is closed; load another")
            if self._scheduler is None:
                device = Device(self.base.params, self.programs)
                self._scheduler = Scheduler(
                    device,
                    self.packs,
                    route=self._route,
                    note=self.notes.append,
                    slots=self.sizing.slots,
                    most_waiting=self._most_waiting,
                    drafts=self._drafts,
                    between=self.base.tokenizer.encode(BETWEEN_PARTS, add_bos=False),
                )
            return self._scheduler

    def warm_up(self, progress: Any = lambda name: None) -> None:
        """Compiles every program that a request may need; afterwards nothing compiles. `progress(name)`."""
        for name in self.programs.warm_up(self.sizing.slots, drafts=self._drafts):
            progress(name)
        if self.routes("auto"):
            self.router.warm_up(self.programs.empty_pool())
        self.scheduler.wake()  # which makes the caches

    def take_notes(self) -> list[str]:
        """What a user should hear of since the last call, a line each."""
        notes = list(self.notes)
        del self.notes[: len(notes)]
        return notes

    def routes(self, pack: str) -> bool:
        """Whether the router is to choose: `pack` is `auto`, and there is one."""
        return pack == "auto" and self.router.routing is not None

    def may_be_parts(self, packs: Sequence[str]) -> bool:
        """Whether these packs, which were named, may be those of a prompt of two parts: where the router knows both."""
        if len(packs) != 2 or self.router.absent:
            return False
        routing = self.router.routing
        return routing is not None and routing.knows(packs)

    def select(self, pack: str) -> Selection:
        """The packs that `pack` names. Raises InputError for one that is not there or does not fit the base."""
        ids = self.packs.check(pack_ids(pack))
        route = items_of(ids, [None] * len(ids), self.gate_rule)
        return Selection(route, mix_of(self.packs.use(ids), [item.gate for item in route]))

    def selection(self, route: list[RouteItem]) -> Selection:
        """The packs of a route, loaded. Where one cannot be used the base answers alone: half an answer's packs were
        never measured together."""
        try:
            packs = self.packs.use([item.pack for item in used(route)])
        except InputError as error:
            self.notes.append(f"the base answers alone: {error}")
            route, packs = [dataclasses.replace(item, gate=0.0) for item in route], ()
        return Selection(route, mix_of(packs, [item.gate for item in used(route)]))

    def scores(self, prompt: Prompt) -> dict[str, float]:
        """The router's score of every pack that has a key."""
        events: queue.SimpleQueue = queue.SimpleQueue()
        request = self.request(prompt, events.put, max_tokens=1, scores_only=True)
        if (end := events.get()).error is not None:
            raise end.error
        return request.scores

    def read(self, prompt: Text, *, raw: bool = False) -> Prompt:
        """A prompt as tokens. Raises InputError where it is empty or longer than the context."""
        found = read_prompt(self.base.tokenizer, prompt, raw=raw)
        self.check_length(found)
        return found

    def check_length(self, prompt: Prompt) -> None:
        if len(prompt.ids) > self.context - (self.lanes > 1):  # a lane keeps one position for rows that fill up
            raise InputError(
                f"the prompt has {len(prompt.ids)} tokens and the context {self.context}; shorten it or raise the"
                f" context (--context, at most {self.base.config.max_context} with {self.base.name})"
            )

    def encode(self, prompt: Text, *, raw: bool = False) -> list[int]:
        """The token ids of `read`."""
        return self.read(prompt, raw=raw).ids

    def account(self) -> Account:
        """What this engine may come to hold, with every slot filled and the programs compiled so far."""
        form = self.packs.form if self.sizing.slots else None
        router = max(self.router.bytes(), self._router_bytes)
        return sized(self.programs, form, self.sizing, router, self._budget, self.context)

    def memory(self) -> Memory:
        """Bytes by component: what is planned, the packs as they are now, and the most that this came to so far."""
        components = self.account().components
        packs = self.packs.memory()
        components |= {name: packs.get(name, 0) for name in components.keys() & packs.keys()}
        with self._lock:
            self._peak = max(self._peak, sum(components.values()))
            return Memory(components=components, peak=self._peak, budget=self._budget)

    def _route(
        self, named: tuple[str, ...] | None, pooled: Any, turn: Callable[[], Iterable[np.ndarray]] | None
    ) -> tuple[list[RouteItem], dict[str, float]]:
        """What the router chooses, or what was named, and the scores; see `Routing.route`."""
        routing = self.router.routing if named is None or turn is not None else None
        if routing is None:
            return items_of(named or (), [None] * len(named or ()), self.gate_rule), {}
        route, scores = routing.route(pooled, self.gate_rule, turn, named)
        if named is None:
            self.predictor.saw(tuple(item.pack for item in route))
        return route, scores


def pack_ids(pack: str) -> tuple[str, ...]:
    """The ids that `--pack` names; `auto` without a router is none."""
    return () if pack in ("none", "auto") else tuple(dict.fromkeys(name.strip() for name in pack.split(",")))
