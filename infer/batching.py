"""Requests that share one batch: 8 over 4 packs together, one after another, and all with one pack.

    python infer/batching.py [--dtype int8] [--tokens 128] [--json] [--write]

Tokens per second over all requests, greedy, of equal length, drafts off, from the first prompt to the last token. Targets: together at
least 2.5 times one after another, and at least 80% of 8 requests that all use one pack. Also what the engine itself costs:
one request without a pack, from its first token to its last, against the same steps in a bare loop.
"""

import queue
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from made_packs import make_packs
from report import load, parser, publish, table

from mbjax.core.sampling import Sampling
from mbjax.engine.chunks import chunks_of
from mbjax.engine.device import Device
from mbjax.engine.engine import Engine
from mbjax.engine.programs import prefill_sizes

BASE, LANES, ROUNDS = "smollm2-135m", 8, 5
QUESTIONS = [
    f"Write a few sentences about {what}."
    for what in ("rain", "bread", "a bridge", "night trains", "a garden", "the sea", "chess", "an old clock")
]


def ask(engine: Engine, question: str, pack: str, n_tokens: int) -> queue.SimpleQueue:
    """Begins an answer of exactly so many tokens: what would end one is passed over."""
    events: queue.SimpleQueue = queue.SimpleQueue()
    engine.request(engine.read(question), events.put, pack=pack, max_tokens=n_tokens, ends=frozenset())
    return events


def rest_of(events: queue.SimpleQueue) -> int:
    """How many tokens come until the end."""
    n = 0
    while isinstance(event := events.get(), int):
        n += 1
    if event.error is not None:
        raise event.error
    return n


def together(engine: Engine, packs: list[str], n_tokens: int) -> float:
    """Tokens per second of the questions, all at once."""
    begin = time.perf_counter()
    begun = [ask(engine, q, packs[i % len(packs)], n_tokens) for i, q in enumerate(QUESTIONS)]
    return sum(rest_of(events) for events in begun) / (time.perf_counter() - begin)


def in_turn(engine: Engine, packs: list[str], n_tokens: int) -> float:
    """The same, each once the one before it has ended."""
    begin = time.perf_counter()
    n = sum(rest_of(ask(engine, q, packs[i % len(packs)], n_tokens)) for i, q in enumerate(QUESTIONS))
    return n / (time.perf_counter() - begin)


def alone(engine: Engine, n_tokens: int) -> float:
    """Tokens per second of one request's steps."""
    events = ask(engine, QUESTIONS[0], "none", n_tokens)
    events.get()
    begin = time.perf_counter()
    return rest_of(events) / (time.perf_counter() - begin)


def bare_steps(device: Device, ids: list[int], n_tokens: int) -> float:
    """The same steps without an engine: the next one begins before the last one's token is read."""
    device.take_seat(0, Sampling(), ids)
    group = device.group([(0, (), (), ())], 0)
    token = device.choose(group, device.prefill(group, chunks_of([ids], prefill_sizes(LANES))))
    np.asarray(token)
    begin, token = time.perf_counter(), device.step(group)
    for _ in range(n_tokens - 2):
        following = device.step(group)
        np.asarray(token)
        token = following
    np.asarray(token)
    return (n_tokens - 1) / (time.perf_counter() - begin)


def measure(dtype: str, n_tokens: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with Engine.load(BASE, dtype=dtype, context=512) as bare:
            ids = make_packs(directory, bare.base, 4)
        with Engine.load(BASE, packs=directory, dtype=dtype, context=512, lanes=LANES, drafts=False) as engine:
            engine.warm_up()
            device, ids_of_one = Device(engine.base.params, engine.programs), engine.encode(QUESTIONS[0])
            ways = {
                "together": lambda: together(engine, ids, n_tokens),
                "one pack": lambda: together(engine, ids[:1], n_tokens),
                "no pack": lambda: together(engine, ["none"], n_tokens),
                "in turn": lambda: in_turn(engine, ids, n_tokens),
                "alone": lambda: alone(engine, n_tokens),
                "bare": lambda: bare_steps(device, ids_of_one, n_tokens),
            }
            speeds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, run in ways.items():
                    speeds[name].append(run())
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    return {"dtype": dtype, "tokens": n_tokens, "tok_s": medians, "rounds": speeds}


def ratio(found: dict[str, Any], one: str, other: str) -> float:
    """The median of the rounds' own ratios: what else runs on the machine bears on both."""
    return statistics.median(a / b for a, b in zip(found["rounds"][one], found["rounds"][other], strict=True))


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--dtype", default="int8")
    command.add_argument("--tokens", type=int, default=128)
    options = command.parse_args()
    begun = load()
    found = measure(options.dtype, options.tokens)
    speed = found["tok_s"]
    rows = [
        ("8 requests over 4 packs, together", f"{speed['together']:.0f} tokens/s"),
        ("8 requests with one pack, together", f"{speed['one pack']:.0f} tokens/s"),
        ("8 requests without a pack, together", f"{speed['no pack']:.0f} tokens/s"),
        ("8 requests over 4 packs, one after another", f"{speed['in turn']:.0f} tokens/s"),
        ("one request's steps, engine / bare loop", f"{speed['alone']:.0f} / {speed['bare']:.0f} tokens/s"),
        ("together against one after another (target 2.5)", f"{ratio(found, 'together', 'in turn'):.2f}"),
        ("4 packs against one (target 80%)", f"{ratio(found, 'together', 'one pack'):.0%}"),
        ("4 packs against none", f"{ratio(found, 'together', 'no pack'):.0%}"),
        ("engine against bare loop", f"{ratio(found, 'alone', 'bare'):.0%}"),
    ]
    publish(
        options,
        found,
        "Requests in one batch",
        begun + table(("what", f"median of {ROUNDS} rounds"), rows),
        "batching.md",
    )


if __name__ == "__main__":
    main()
