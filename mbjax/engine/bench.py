"""How fast a base runs here, and how near its decoding comes to the limit that memory bandwidth sets."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.sampling import Sampling, lanes_of
from mbjax.engine.engine import Engine, Selection
from mbjax.engine.programs import tree_bytes
from mbjax.engine.reply import Memory
from mbjax.engine.stream import prefill_prompt
from mbjax.errors import InputError
from mbjax.kernels.native import isa

_BANDWIDTH_BYTES = 2**28  # far beyond any cache


@dataclasses.dataclass(frozen=True)
class Bench:
    """Medians over the repeats, measured as llama.cpp's llama-bench does.

    prefill_tok_s: tokens per second of taking in a prompt; decode_tok_s: of decoding greedily from an empty context;
    bytes_per_token: weights and cached positions that one decoding step reads; bandwidth: bytes per second that this
    device reads; bandwidth_share: the share of it that decoding uses; swap_s: seconds to swap a pack, None without one.
    kernels: the instruction set of the compiled CPU kernels, None where only XLA runs.
    """

    prefill_tok_s: float
    decode_tok_s: float
    bandwidth_share: float
    swap_s: float | None
    memory: Memory
    bytes_per_token: int
    bandwidth: float
    prompt_tokens: int
    decode_tokens: int
    kernels: str | None

    def to_json(self) -> dict[str, Any]:
        """The `bench` document of the command line."""
        return dataclasses.asdict(self)


def bench(
    engine: Engine,
    *,
    prompt_tokens: int = 512,
    decode_tokens: int = 128,
    repeats: int = 3,
    pack: str = "none",
    progress: Callable[[int, int], None] | None = None,
) -> Bench:
    """Measures `engine` with random tokens; compiling and a first run of everything come before the clock starts.

    `progress(done, total)` counts runs. Raises InputError where the context does not hold the tokens asked for.
    """
    for name, value, most in (
        ("prompt tokens", prompt_tokens, engine.context),
        ("decode tokens", decode_tokens, engine.context - 1),
        ("repeats", repeats, 1000),
    ):
        if not 1 <= value <= most:
            raise InputError(f"{name} is {value}; it must be 1 to {most} (the context is {engine.context})")
    prompt = np.random.default_rng(0).integers(0, engine.base.config.vocab_size, prompt_tokens).tolist()
    use = engine.select(pack)
    prefills, decodes = [], []
    for run in range(repeats + 1):
        prefills.append(_prefill_seconds(engine, use, prompt))
        decodes.append(_decode_seconds(engine, use, prompt[0], decode_tokens))
        if progress is not None:
            progress(run + 1, repeats + 1)
    decode_tok_s = decode_tokens / statistics.median(decodes[1:])
    bytes_per_token, bandwidth = _bytes_per_token(engine, use, decode_tokens), read_bandwidth()
    return Bench(
        prefill_tok_s=prompt_tokens / statistics.median(prefills[1:]),
        decode_tok_s=decode_tok_s,
        bandwidth_share=bytes_per_token * decode_tok_s / bandwidth,
        swap_s=None,
        memory=engine.memory(),
        bytes_per_token=bytes_per_token,
        bandwidth=bandwidth,
        prompt_tokens=prompt_tokens,
        decode_tokens=decode_tokens,
        kernels=isa() if jax.default_backend() == "cpu" else None,
    )


def read_bandwidth(n_bytes: int = _BANDWIDTH_BYTES, repeats: int = 5) -> float:
    """Bytes per second at which the device reads memory: the best of several sums over a large array."""
    values = jnp.ones((n_bytes // 4,), jnp.float32)
    total = jax.jit(jnp.sum)
    jax.block_until_ready(total(values))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(total(values))
        seconds.append(time.perf_counter() - start)
    return values.nbytes / min(seconds)


def _prefill_seconds(engine: Engine, use: Selection, prompt: list[int]) -> float:
    cache = jax.block_until_ready(engine.take_cache(use.programs))
    start = time.perf_counter()
    h, cache = prefill_prompt(use.programs, engine.base.params, use.mix, cache, prompt)
    jax.block_until_ready(h)
    seconds = time.perf_counter() - start
    engine.give_cache(use.programs, cache)
    return seconds


def _decode_seconds(engine: Engine, use: Selection, first: int, n_tokens: int) -> float:
    """Seconds of `n_tokens` steps, each token handed to the host as in generation."""
    params, decode = engine.base.params, use.programs.decode()
    lanes = lanes_of([(Sampling(), [])], engine.base.config.vocab_size)
    token = jnp.asarray(np.asarray([first], np.int32))
    cache = jax.block_until_ready(engine.take_cache(use.programs))
    start = time.perf_counter()
    for _ in range(n_tokens):
        following, cache, lanes = decode(params, use.mix, cache, token, lanes)
        np.asarray(token)
        token = following
    jax.block_until_ready(token)
    seconds = time.perf_counter() - start
    engine.give_cache(use.programs, cache)
    return seconds


def _bytes_per_token(engine: Engine, use: Selection, n_tokens: int) -> int:
    """Weights and packs in use, less an embedding that is only looked up, and the mean number of cached positions."""
    params = engine.base.params
    looked_up = 0 if params.head is None else tree_bytes(params.embed)
    position = use.programs.kv_bytes() // use.programs.capacity
    return tree_bytes(params) + tree_bytes(use.mix.packs) - looked_up + position * (n_tokens + 1) // 2
