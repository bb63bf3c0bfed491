"""The ways to ask an engine: whole answers and streams, for threads and for event loops."""

import abc
import asyncio
import queue
from collections.abc import Sequence
from typing import Any

from mbjax.core.sampling import Sampling
from mbjax.engine.reply import Memory, Reply
from mbjax.engine.request import Request
from mbjax.engine.stream import AsyncStream, Stream, into_loop
from mbjax.io.load import LoadedBase
from mbjax.io.prompt import Message, Prompt

Text = str | Sequence[Message]


class Answering(abc.ABC):
    """What can be asked of whoever reads prompts and runs requests."""

    base: LoadedBase

    @abc.abstractmethod
    def read(self, prompt: Text, *, raw: bool = False) -> Prompt: ...

    @abc.abstractmethod
    def request(self, prompt: Prompt, deliver: Any, **settings: Any) -> Request: ...

    @abc.abstractmethod
    def cancel(self, request: Request) -> None: ...

    @abc.abstractmethod
    def memory(self) -> Memory: ...

    def generate(self, prompt: Text, **settings: Any) -> Reply:
        """The whole answer to a prompt (one user turn) or to a list of chat messages; settings as in `stream`."""
        stream = self.stream(prompt, **settings)
        return stream.reply("".join(stream))

    def stream(
        self,
        prompt: Text,
        *,
        pack: str = "auto",
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        raw: bool = False,
        timeout: float | None = None,
    ) -> Stream:
        """An answer as an iterator of text pieces, each valid UTF-8; `.reply(text)` afterwards gives the figures.

        Args:
          pack: `none`, ids joined by commas, or `auto`, which leaves the choice to the router.
          stop: texts that end the answer before they appear; where a prompt has two parts, all of it.
          raw: take the prompt as it is, without the chat template.
          timeout: seconds after which the answer ends with what there is, `finish` "deadline".

        Raises InputError for a prompt that is empty or too long and for packs that are not there, FailureError where
        too many requests wait. What a named pack has wrong is raised while iterating.
        """
        events: queue.SimpleQueue = queue.SimpleQueue()
        request = self.request(
            self.read(prompt, raw=raw), events.put, pack=pack, max_tokens=max_tokens, sampling=sampling, timeout=timeout
        )
        return Stream(self, request, tuple(stop), events)

    async def agenerate(self, prompt: Text, **settings: Any) -> Reply:
        """`generate` for an event loop."""
        stream = self.astream(prompt, **settings)
        text = "".join([piece async for piece in stream])
        return stream.reply(text)

    def astream(
        self,
        prompt: Text,
        *,
        pack: str = "auto",
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        raw: bool = False,
        timeout: float | None = None,
    ) -> AsyncStream:
        """`stream` for `async for`; call it in a running event loop."""
        events: asyncio.Queue = asyncio.Queue()
        deliver = into_loop(asyncio.get_running_loop(), events)
        request = self.request(
            self.read(prompt, raw=raw), deliver, pack=pack, max_tokens=max_tokens, sampling=sampling, timeout=timeout
        )
        return AsyncStream(self, request, tuple(stop), events)
