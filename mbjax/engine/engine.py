"""The Python inference API: one base, its programs, and requests."""

import dataclasses
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.cache import Cache, init_cache
from mbjax.core.decode import chunk_sizes
from mbjax.core.sampling import Sampling, lanes_of
from mbjax.engine.compile_cache import use_compile_cache
from mbjax.engine.programs import Programs, tree_bytes
from mbjax.engine.reply import Memory, Reply, Timing
from mbjax.engine.stop import StopScanner
from mbjax.errors import InputError
from mbjax.io.load import LoadedBase, load_base
from mbjax.io.tokenizer import Detokenizer

Message = dict[str, str]
DEFAULT_CONTEXT = 2048


class Engine:
    """Generates with one base on one device.

    Use `Engine.load(name)`. `context` is the most positions a conversation may fill; the KV cache is allocated for it.
    """

    def __init__(self, base: LoadedBase, *, context: int = DEFAULT_CONTEXT) -> None:
        if not 1 <= context <= base.config.max_context:
            raise InputError(f"context is {context}; {base.name} bears 1 to {base.config.max_context} positions")
        self.base, self.context = base, context
        self._kv_dtype = str(base.params.embed.dtype)
        capacity = sum(chunk_sizes(context))  # the padding of the last chunk is written, too
        self.programs = Programs(base.params, base.config, batch=1, capacity=capacity, kv_dtype=self._kv_dtype)
        self._free: Cache | None = None

    @classmethod
    def load(cls, name_or_path: str | Path, *, dtype: str = "auto", context: int | None = None) -> "Engine":
        """Loads a base (catalog name, HF directory or GGUF file) and makes an engine of it."""
        use_compile_cache()
        base = load_base(name_or_path, dtype=dtype)
        return cls(base, context=min(DEFAULT_CONTEXT, base.config.max_context) if context is None else context)

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        raw: bool = False,
    ) -> Reply:
        """The whole answer to a prompt (one user turn) or to a list of chat messages; `raw` skips the template."""
        stream = self.stream(prompt, max_tokens=max_tokens, sampling=sampling, stop=stop, raw=raw)
        text = "".join(stream)
        return stream.reply(text)

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        raw: bool = False,
    ) -> "Stream":
        """The same as an iterator of text pieces, each valid UTF-8; `.reply(text)` afterwards gives the figures."""
        if max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}; it must be at least 1")
        ids = self.encode(prompt, raw=raw)
        return Stream(self, ids, min(max_tokens, self.context - len(ids) + 1), sampling or Sampling(), tuple(stop))

    def encode(self, prompt: str | Sequence[Message], *, raw: bool = False) -> list[int]:
        """Token ids of a prompt. Raises InputError where it is empty or longer than the context."""
        tokenizer = self.base.tokenizer
        if isinstance(prompt, str) and not prompt:
            raise InputError("the prompt is empty; give some text")
        if isinstance(prompt, str) and (raw or tokenizer.template is None):
            ids = tokenizer.encode(prompt)
        else:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
            if tokenizer.template is None:
                raise InputError(f"{self.base.name} has no chat template; give plain text instead of messages")
            ids = tokenizer.encode(tokenizer.template.render(messages), add_bos=False)
        if len(ids) > self.context:
            raise InputError(
                f"the prompt has {len(ids)} tokens and the context {self.context}; shorten it or raise the context"
                f" (--context, at most {self.base.config.max_context} with {self.base.name})"
            )
        return ids

    def memory(self) -> Memory:
        """Bytes by component: the weights, the KV cache, and the largest temporary of the programs compiled so far."""
        temporary = max(self.programs.temporary_bytes().values(), default=0)
        components = {
            "base": tree_bytes(self.base.params),
            "kv": self.programs.kv_bytes(),
            "temporaries": temporary,
        }
        return Memory(components=components, peak=sum(components.values()), budget=None)

    def take_cache(self) -> Cache:
        """An empty cache; the buffers of the last request are used again."""
        cache, self._free = self._free, None
        if cache is None:
            return init_cache(self.base.config, 1, self.programs.capacity, self._kv_dtype)
        return dataclasses.replace(cache, length=jnp.zeros_like(cache.length))

    def give_cache(self, cache: Cache) -> None:
        self._free = cache


class Stream:
    """One request in progress: iterate for text; `tokens` holds the ids so far."""

    def __init__(self, engine: Engine, prompt: list[int], max_tokens: int, sampling: Sampling, stop: tuple[str, ...]):
        self._engine, self.prompt, self._max_tokens = engine, prompt, max_tokens
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

    def reply(self, text: str) -> Reply:
        """The finished answer; call it once the iteration has ended."""
        start, first, end = (self._marks[name] for name in ("start", "first", "end"))
        later = len(self.tokens) - 1
        timing = Timing(
            ttft_s=first - start,
            prefill_tok_s=len(self.prompt) / (first - start),
            decode_tok_s=later / (end - first) if later > 0 else None,
        )
        return Reply(text, list(self.tokens), len(self.prompt), [], timing, self._engine.memory())

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
        engine, ends = self._engine, self._engine.base.tokenizer.eos_ids
        params = engine.base.params
        lanes = lanes_of([(self._sampling, self.prompt)], engine.base.config.vocab_size)
        self._marks["start"] = time.perf_counter()
        h, cache = prefill_prompt(engine, engine.take_cache(), self.prompt)
        try:
            token, lanes = engine.programs.choose()(params, h, lanes, cache.length)
            decode = engine.programs.decode()  # loaded, or compiled, while the device takes in the prompt
            while True:
                done = len(self.tokens) + 1 >= self._max_tokens
                following, cache, lanes = (token, cache, lanes) if done else decode(params, cache, token, lanes)
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
            engine.give_cache(cache)


def prefill_prompt(engine: Engine, cache: Cache, ids: list[int]) -> tuple[jax.Array, Cache]:
    """Takes a prompt in, chunk by chunk. Returns the last token's hidden state [1, D] and the cache."""
    at, h = 0, None
    for size in chunk_sizes(len(ids)):
        part = ids[at : at + size]
        at += len(part)
        tokens = np.zeros((1, size), np.int32)
        tokens[0, : len(part)] = part
        n_valid = np.asarray([len(part)], np.int32)
        h, cache = engine.programs.prefill(size)(engine.base.params, cache, jnp.asarray(tokens), jnp.asarray(n_valid))
    assert h is not None
    return h, cache
