"""Prefill and decode speed of mbjax and llama.cpp, in turns within one process, on the same file and tokens."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import llama_cpp
import numpy as np
from real_texts import texts_of_lengths

from mbjax.core.sampling import Sampling, lanes_of
from mbjax.engine.bench import read_bandwidth
from mbjax.engine.engine import Engine
from mbjax.engine.programs import tree_bytes
from mbjax.engine.stream import prefill_prompt

Clock = Callable[[], float]
N_PROMPT, N_DECODE, CONTEXTS = 512, 48, (128, 2048)


def compare_speed(path: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Tokens per second, medians of `rounds` after one that does not count.

    prefill: N_PROMPT tokens up to the choice of the next one. decode_C: N_DECODE greedy tokens after C. The two
    programs take turns, so that a slow spell of the machine hits both; the memory bandwidth is measured in each round,
    too, and is the median as well.
    """
    engine = Engine.load(path, context=max(CONTEXTS) + N_DECODE)
    options: dict[str, Any] = {"n_threads": threads, "n_threads_batch": threads, "verbose": False}
    llama = llama_cpp.Llama(str(path), n_ctx=max(CONTEXTS) + 4 * N_DECODE, **options)
    text = texts_of_lengths(lambda text: engine.base.tokenizer.encode(text, add_bos=False))[-1][1]
    ids = text * -(-max(CONTEXTS) // len(text))
    measured: dict[str, tuple[int, Clock]] = {}
    for who, run in (("mbjax", _Mbjax(engine)), ("llamacpp", _Llamacpp(llama))):
        measured[f"{who}_prefill"] = (N_PROMPT, lambda run=run: run.prefill(ids[:N_PROMPT]))
        for context in CONTEXTS:
            clock = lambda run=run, context=context: run.decode(ids[:context], N_DECODE)
            measured[f"{who}_decode_{context}"] = (N_DECODE, clock)
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    bandwidths = []
    for _ in range(rounds + 1):
        bandwidths.append(read_bandwidth())
        for name in sorted(measured, key=lambda name: name.split("_", 1)[1]):
            seconds[name].append(measured[name][1]())
    speeds = {name: n_tokens / statistics.median(seconds[name][1:]) for name, (n_tokens, _) in measured.items()}
    tasks = ("prefill", *(f"decode_{context}" for context in CONTEXTS))
    read, bandwidth = tree_bytes(engine.base.params), statistics.median(bandwidths[1:])
    llama.close()
    return {
        "file": path.stem,
        "rounds": rounds,
        "n_prompt": N_PROMPT,
        "n_decode": N_DECODE,
        "contexts": CONTEXTS,
        **{f"{name}_tok_s": speed for name, speed in speeds.items()},
        **{f"{task}_ratio": speeds[f"mbjax_{task}"] / speeds[f"llamacpp_{task}"] for task in tasks},
        "bandwidth": bandwidth,
        "bytes_per_token": read,
        "bandwidth_share": read * speeds[f"mbjax_decode_{CONTEXTS[0]}"] / bandwidth,
    }


class _Mbjax:
    """Seconds of taking tokens in and choosing one, and of decoding after them; a prompt is taken in once."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._use = engine, engine.select("none")

    def prefill(self, ids: list[int]) -> float:
        begin = time.perf_counter()
        _, cache, _ = self._take_in(ids)
        seconds = time.perf_counter() - begin
        self._engine.give_cache(self._use.programs, cache)
        return seconds

    def decode(self, ids: list[int], n_tokens: int) -> float:
        params, programs = self._engine.base.params, self._use.programs
        token, cache, lanes = self._take_in(ids)
        begin = time.perf_counter()
        for _ in range(n_tokens):  # as in generation, the next step is queued before a token is looked at
            following, cache, lanes = programs.decode()(params, self._use.mix, cache, token, lanes)
            np.asarray(token)
            token = following
        np.asarray(token)
        seconds = time.perf_counter() - begin
        self._engine.give_cache(programs, cache)
        return seconds

    def _take_in(self, ids: list[int]) -> tuple[jax.Array, Any, Any]:
        params, programs = self._engine.base.params, self._use.programs
        lanes = lanes_of([(Sampling(), ids)], self._engine.base.config.vocab_size)
        h, cache = prefill_prompt(programs, params, self._use.mix, self._engine.take_cache(programs), ids)
        token, lanes = programs.choose()(params, h, lanes, cache.length)
        return jnp.asarray(np.asarray(token)), cache, lanes


class _Llamacpp:
    def __init__(self, llama: llama_cpp.Llama) -> None:
        self._llama = llama

    def prefill(self, ids: list[int]) -> float:
        self._llama.reset()
        begin = time.perf_counter()
        self._llama.eval(ids)
        self._llama.sample(temp=0.0)
        return time.perf_counter() - begin

    def decode(self, ids: list[int], n_tokens: int) -> float:
        self.prefill(ids)
        token = self._llama.sample(temp=0.0)
        begin = time.perf_counter()
        for _ in range(n_tokens):
            self._llama.eval([token])
            token = self._llama.sample(temp=0.0)
        return time.perf_counter() - begin
