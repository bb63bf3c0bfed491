"""How fast a base runs here, and how near its decoding comes to the limit that memory bandwidth sets."""

import contextlib
import dataclasses
import queue
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.engine.engine import Engine
from mbjax.engine.programs import tree_bytes
from mbjax.engine.reply import Memory
from mbjax.errors import InputError
from mbjax.io.prompt import raw_prompt
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
    prefills, decodes = [], []
    for run in range(repeats + 1):
        prefills.append(run_tokens(engine, prompt, 1, pack)[0])
        decodes.append(run_tokens(engine, prompt[:1], decode_tokens + 1, pack)[1])
        if progress is not None:
            progress(run + 1, repeats + 1)
    decode_tok_s = decode_tokens / statistics.median(decodes[1:])
    bytes_per_token, bandwidth = _bytes_per_token(engine, pack, decode_tokens), read_bandwidth()
    return Bench(
        prefill_tok_s=prompt_tokens / statistics.median(prefills[1:]),
        decode_tok_s=decode_tok_s,
        bandwidth_share=bytes_per_token * decode_tok_s / bandwidth,
        swap_s=_swap_seconds(engine),
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


def run_tokens(engine: Engine, ids: list[int], n_tokens: int, pack: str = "none") -> tuple[float, float]:
    """Seconds to the first token of `ids`, and from there to the last of so many greedy ones, whatever they are."""
    events: queue.SimpleQueue = queue.SimpleQueue()
    request = engine.request(
        raw_prompt(ids), events.put, pack=pack, max_tokens=n_tokens, ends=frozenset(), drafts=False
    )
    while isinstance(event := events.get(), int):
        pass
    if event.error is not None:
        raise event.error
    marks = request.marks
    return marks["first"] - marks["start"], marks["end"] - marks["first"]


def _swap_seconds(engine: Engine) -> float | None:
    """Median seconds of bringing a pack from host memory to use; None without one."""
    for pack in engine.packs.ids():
        with contextlib.suppress(InputError):  # made for another base, or damaged: then another one
            return statistics.median(engine.packs.swap_seconds(pack) for _ in range(9))
    return None


def _bytes_per_token(engine: Engine, pack: str, n_tokens: int) -> int:
    """Weights and packs in use, less an embedding that is only looked up, and the mean number of cached positions."""
    params, packs = engine.base.params, engine.select(pack).mix.packs
    looked_up = 0 if params.head is None else tree_bytes(params.embed)
    position = engine.programs.kv_bytes() // (engine.lanes * engine.programs.capacity)
    return tree_bytes(params) + tree_bytes(packs) - looked_up + position * (n_tokens + 1) // 2
