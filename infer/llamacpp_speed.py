"""Prefill and decode speed of mbjax and llama.cpp, in turns within one process, on the same tokens."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import llama_cpp
import numpy as np

from mbjax.core.sampling import Sampling, lanes_of
from mbjax.engine.engine import Engine
from mbjax.engine.stream import prefill_prompt

Clock = Callable[[], float]


def compare_speed(
    engine: Engine, llama: llama_cpp.Llama, ids: list[int], *, n_prompt: int, n_start: int, n_decode: int, rounds: int
) -> dict[str, Any]:
    """Tokens per second, medians of `rounds` after one that does not count.

    prefill: `n_prompt` of `ids` up to the choice of the next token. decode: `n_decode` greedy tokens after `n_start`
    of `ids`. The two programs take turns, so that a slow spell of the machine hits both.
    """
    prompt, start = ids[:n_prompt], ids[:n_start]
    measured: dict[str, tuple[int, Clock]] = {
        "mbjax_prefill": (n_prompt, lambda: _mbjax(engine, prompt, 0)[0]),
        "llamacpp_prefill": (n_prompt, lambda: _llamacpp(llama, prompt, 0)[0]),
        "mbjax_decode": (n_decode, lambda: _mbjax(engine, start, n_decode)[1]),
        "llamacpp_decode": (n_decode, lambda: _llamacpp(llama, start, n_decode)[1]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(rounds + 1):
        for name, (_, clock) in measured.items():
            seconds[name].append(clock())
    speeds = {name: n_tokens / statistics.median(seconds[name][1:]) for name, (n_tokens, _) in measured.items()}
    return {
        "n_prompt": n_prompt,
        "n_start": n_start,
        "n_decode": n_decode,
        "rounds": rounds,
        **{f"{name}_tok_s": speed for name, speed in speeds.items()},
        "prefill_ratio": speeds["mbjax_prefill"] / speeds["llamacpp_prefill"],
        "decode_ratio": speeds["mbjax_decode"] / speeds["llamacpp_decode"],
    }


def _mbjax(engine: Engine, ids: list[int], n_decode: int) -> tuple[float, float]:
    """Seconds of taking `ids` in and choosing a token, and of `n_decode` steps after it."""
    params, use = engine.base.params, engine.select("none")
    programs = use.programs
    lanes = lanes_of([(Sampling(), ids)], engine.base.config.vocab_size)
    cache = jax.block_until_ready(engine.take_cache(programs))
    begin = time.perf_counter()
    h, cache = prefill_prompt(programs, params, use.mix, cache, ids)
    token, lanes = programs.choose()(params, h, lanes, cache.length)
    token = jnp.asarray(np.asarray(token))
    taken_in = time.perf_counter()
    for _ in range(n_decode):
        token, cache, lanes = programs.decode()(params, use.mix, cache, token, lanes)
        int(token[0])
    end = time.perf_counter()
    engine.give_cache(programs, cache)
    return taken_in - begin, end - taken_in


def _llamacpp(llama: llama_cpp.Llama, ids: list[int], n_decode: int) -> tuple[float, float]:
    llama.reset()
    begin = time.perf_counter()
    llama.eval(ids)
    token = llama.sample(temp=0.0)
    taken_in = time.perf_counter()
    for _ in range(n_decode):
        llama.eval([token])
        token = llama.sample(temp=0.0)
    return taken_in - begin, time.perf_counter() - taken_in
