"""One request in progress: from its prompt to pieces of text."""

import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.base import Base
from mbjax.core.cache import Cache
from mbjax.core.decode import chunk_sizes
from mbjax.core.pack import Mix
from mbjax.core.sampling import Sampling, lanes_of
from mbjax.engine.programs import Programs
from mbjax.engine.reply import Reply, RouteItem, Timing
from mbjax.engine.routing import take_in
from mbjax.engine.stop import StopScanner
from mbjax.io.prompt import Prompt
from mbjax.io.tokenizer import Detokenizer

if TYPE_CHECKING:
    from mbjax.engine.engine import Engine, Selection


class Stream:
    """One request in progress: iterate for text; `tokens` holds the ids so far."""

    def __init__(
        self,
        engine: "Engine",
        selection: "Selection | None",
        prompt: Prompt,
        max_tokens: int,
        sampling: Sampling,
        stop: tuple[str, ...],
    ) -> None:
        """`selection` None leaves the choice to the engine's router."""
        self._engine, self._selection, self._max_tokens = engine, selection, max_tokens
        self._prompt, self.prompt = prompt, prompt.ids
        self._sampling, self._stop = sampling, stop
        self.tokens: list[int] = []
        self._pieces = self._run()
        self._marks: dict[str, float] = {}

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        """Ends the answer here; the engine can then take the next request."""
        self._pieces.close()

    @property
    def route(self) -> list[RouteItem]:
        """The packs in use; known once the first piece has come."""
        return self._selection.route if self._selection is not None else []

    def reply(self, text: str) -> Reply:
        """The finished answer; call it once the iteration has ended."""
        start, first, end = (self._marks[name] for name in ("start", "first", "end"))
        later = len(self.tokens) - 1
        timing = Timing(
            ttft_s=first - start,
            prefill_tok_s=len(self.prompt) / (first - start),
            decode_tok_s=later / (end - first) if later > 0 else None,
        )
        return Reply(text, list(self.tokens), len(self.prompt), self.route, timing, self._engine.memory())

    def _run(self) -> Generator[str]:
        detokenizer, scanner = Detokenizer(self._engine.base.tokenizer), StopScanner(self._stop)
        for token in self._ids():
            piece = scanner.push(detokenizer.push(token))
            if piece:
                yield piece
            if scanner.stopped:
                return
        rest = scanner.push(detokenizer.flush()) + scanner.flush()
        if rest:
            yield rest

    def _ids(self) -> Iterator[int]:
        """Token ids up to the end of turn, which is left out. The next step runs while a token is being handled."""
        engine, ends, params = self._engine, self._engine.base.tokenizer.eos_ids, self._engine.base.params
        lanes = lanes_of([(self._sampling, self.prompt)], engine.base.config.vocab_size)
        self._marks["start"] = time.perf_counter()
        selection, h, cache = self._take_in()
        programs, mix = selection.programs, selection.mix
        try:
            token, lanes = programs.choose()(params, h, lanes, cache.length)
            decode = programs.decode()  # loaded, or compiled, while the device takes in the prompt
            while True:
                done = len(self.tokens) + 1 >= self._max_tokens
                following, cache, lanes = (token, cache, lanes) if done else decode(params, mix, cache, token, lanes)
                current = int(np.asarray(token)[0])  # token[0] would be a program, queued behind the step just begun
                self._marks["end"] = time.perf_counter()
                self._marks.setdefault("first", self._marks["end"])
                if current in ends:
                    return
                self.tokens.append(current)
                yield current
                if done:
                    return
                token = following
        finally:
            engine.give_cache(programs, cache)

    def _take_in(self) -> "tuple[Selection, jax.Array, Cache]":
        if self._selection is None:
            self._selection, h, cache = take_in(self._engine, self._prompt)
            return self._selection, h, cache
        programs, mix = self._selection.programs, self._selection.mix
        cache = self._engine.take_cache(programs)
        return self._selection, *prefill_prompt(programs, self._engine.base.params, mix, cache, self.prompt)


def prefill_prompt(programs: Programs, params: Base, mix: Mix, cache: Cache, ids: list[int]) -> tuple[jax.Array, Cache]:
    """Takes a prompt in, chunk by chunk. Returns the last token's hidden state [1, D] and the cache."""
    at, h = 0, None
    for size in chunk_sizes(len(ids)):
        part = ids[at : at + size]
        at += len(part)
        tokens = np.zeros((1, size), np.int32)
        tokens[0, : len(part)] = part
        n_valid = jnp.asarray(np.asarray([len(part)], np.int32))
        program = programs.prefill(size)
        jax.block_until_ready(h)  # a program that waits in the queue holds its temporaries already
        h, cache = program(params, mix, cache, jnp.asarray(tokens), n_valid)
    assert h is not None
    return h, cache
