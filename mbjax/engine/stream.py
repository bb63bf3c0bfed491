"""An answer as it comes: tokens from the engine's thread become text where the caller reads it."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from mbjax.engine.reply import Memory, Reply, RouteItem, Timing
from mbjax.engine.request import End, Request
from mbjax.engine.stop import StopScanner
from mbjax.io.tokenizer import Detokenizer

if TYPE_CHECKING:
    from mbjax.engine.answering import Answering


class Answer:
    """What both kinds of stream know: the request, and the text so far. `tokens` holds the ids that were read."""

    def __init__(self, engine: "Answering", request: Request, stop: tuple[str, ...]) -> None:
        self._engine, self.request = engine, request
        self._detokenizer, self._scanner = Detokenizer(engine.base.tokenizer), StopScanner(stop)
        self.tokens: list[int] = []
        self.finish: str | None = None  # stop, length, cancelled or deadline, once it has ended

    @property
    def route(self) -> list[RouteItem]:
        """The packs in use; known once the first piece has come."""
        return self.request.route or []

    def cancel(self) -> None:
        """Ends the answer here; its place in the batch is free at once."""
        if self.finish is None:
            self.finish = "cancelled"
            self._engine.cancel(self.request)

    def reply(self, text: str) -> Reply:
        """The finished answer; call it once the iteration has ended."""
        marks, n_prompt = self.request.marks, len(self.request.prompt.ids)
        timing = None
        if "first" in marks:
            start, first, end = (marks[name] for name in ("start", "first", "end"))
            later = len(self.request.tokens) - 1
            speed = later / (end - first) if later > 0 and end > first else None
            timing = Timing(ttft_s=first - start, prefill_tok_s=n_prompt / (first - start), decode_tok_s=speed)
        memory: Memory = self._engine.memory()
        finish = self.finish or "cancelled"
        return Reply(text, list(self.tokens), n_prompt, self.route, timing or Timing(0.0, 0.0, None), memory, finish)

    def take(self, event: int | End) -> str:
        """The text that an event adds. Raises what made the request fail."""
        if isinstance(event, End):
            if event.error is not None:
                self.finish = "failed"
                raise event.error
            self.finish = self.finish or event.reason
            return self._scanner.push(self._detokenizer.flush()) + self._scanner.flush()
        self.tokens.append(event)
        piece = self._scanner.push(self._detokenizer.push(event))
        if self._scanner.stopped:
            self.cancel()
            self.finish = "stop"
        return piece


class Stream(Answer):
    """One request in progress: iterate for pieces of text."""

    def __init__(
        self, engine: "Answering", request: Request, stop: tuple[str, ...], events: "queue.SimpleQueue"
    ) -> None:
        super().__init__(engine, request, stop)
        self._pieces = self._run(events)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the answer here."""
        self.cancel()
        self._pieces.close()

    def _run(self, events: "queue.SimpleQueue") -> Generator[str]:
        try:
            while self.finish is None:
                if piece := self.take(events.get()):
                    yield piece
        finally:
            self.cancel()


class AsyncStream(Answer):
    """The same for `async for`, in the event loop that asked for it."""

    def __init__(self, engine: "Answering", request: Request, stop: tuple[str, ...], events: "asyncio.Queue") -> None:
        super().__init__(engine, request, stop)
        self._pieces = self._run(events)

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces

    async def _run(self, events: "asyncio.Queue") -> AsyncIterator[str]:
        try:
            while self.finish is None:
                if piece := self.take(await events.get()):
                    yield piece
        finally:
            self.cancel()


def into_loop(loop: asyncio.AbstractEventLoop, events: "asyncio.Queue") -> Callable[[Any], None]:
    """Delivers events from another thread; a loop that is closed has nobody left to read them."""

    def deliver(event: Any) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, event)

    return deliver
