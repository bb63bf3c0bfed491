"""Whether a second model pays as the drafter of speculative decoding: the base without packs, or the base in 4 bits.

    python infer/drafters.py --data DIR [--packs packs] [--n 6] [--json] [--write]

DIR/NAME/test.jsonl holds prompts of pack NAME. Each gets a greedy answer of the int8 base with that pack; an answer's
tokens then go through the drafter in one pass, and the share that it would have chosen itself is how often a draft is
taken. A round of k drafted tokens costs k steps of the drafter and one of k + 1 rows, and yields 1 + a + ... + a^k tokens.
Steps are timed in turns, each with one program, from rows of short contexts. Above 1.0 a drafter pays.
"""

import statistics
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from report import parser, publish, table

import mbjax
from mbjax.core.sampling import Sampling
from mbjax.engine.device import Device
from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import read_items
from mbjax.io.load import LoadedBase

BASE, ROWS, TOKENS, STEPS, ROUNDS = "smollm2-135m", (1, 2, 4, 8), 48, 12, 5


def steps_of(engine: Engine, pack: str | None, name: str) -> dict[str, Any]:
    """Calls that take one step each, by name: of so many rows."""
    device = Device(engine.base.params, engine.programs)
    for seat in range(max(ROWS)):
        device.take_seat(seat, Sampling(), list(range(1, 41)))
    ids, gates = ((pack,), (1.0,)) if pack is not None else ((), ())
    packs = engine.packs.use(ids)
    groups = {rows: device.group([(s, ids, gates, packs) for s in range(rows)], 1) for rows in ROWS}
    return {f"{name} {rows}": lambda g=group: jax.block_until_ready(device.step(g)) for rows, group in groups.items()}


def step_seconds(calls: dict[str, Any]) -> dict[str, float]:
    """The median of each, in turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # compiles
    for _ in range(ROUNDS):
        for name, call in calls.items():
            for _ in range(STEPS):
                begin = time.perf_counter()
                call()
                found[name].append(time.perf_counter() - begin)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def agreement(base: LoadedBase, prompt: list[int], answer: list[int]) -> int:
    """How many tokens of an answer this base chooses itself after those before them."""
    tokens = jnp.asarray([[*prompt, *answer]], jnp.int32)
    padded = jnp.pad(tokens, ((0, 0), (0, -tokens.shape[1] % 128)))
    logits, _ = mbjax.forward(base.params, (), jnp.zeros((*padded.shape, 0)), padded, config=base.config)
    chosen = np.asarray(jnp.argmax(logits[0, len(prompt) - 1 :], axis=-1))[: len(answer)]
    return int((chosen == np.asarray(answer)).sum())


def best(accepted: float, drafting: float, verifying: dict[int, float]) -> tuple[float, int]:
    """The largest speed-up and its k, for costs in steps of the model itself."""
    return max((sum(accepted**i for i in range(k + 1)) / (k * drafting + cost), k) for k, cost in verifying.items())


def answers(engine: Engine, prompts: list[str], pack: str) -> list[tuple[list[int], list[int]]]:
    """Prompts and their greedy answers, as tokens."""
    found = []
    for prompt in prompts:
        stream = engine.stream(prompt, pack=pack, max_tokens=TOKENS)
        for _ in stream:
            pass
        found.append((engine.encode(prompt), stream.tokens))
    return found


def accepted(base: LoadedBase, found: list[tuple[list[int], list[int]]]) -> float:
    return sum(agreement(base, *pair) for pair in found) / sum(len(answer) for _, answer in found)


def measure(data: Path, packs: Path, n: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"context": 512, "lanes": max(ROWS), "drafts": False}
    with_pack, without = [], []
    with Engine.load(BASE, packs=packs, dtype="int8", **settings) as engine:
        with Engine.load(BASE, dtype="int4", **settings) as quick:
            names = [pack for pack in engine.packs.ids() if (data / pack / "test.jsonl").is_file()]
            calls = steps_of(engine, names[0], "pack") | steps_of(engine, None, "base") | steps_of(quick, None, "int4")
            seconds = step_seconds(calls)
        for pack in names:
            items = read_items(data / pack / "test.jsonl")
            prompts = [prompt for item in items if (prompt := getattr(item, "prompt", None))][:n]
            with_pack += answers(engine, prompts, pack)
            without += answers(engine, prompts, "none")
    shares = {
        "base without packs": accepted(mbjax.load_base(BASE, dtype="int8"), with_pack),
        "base in 4 bits": accepted(mbjax.load_base(BASE, dtype="int4"), without),
    }
    return {"step_s": seconds, "accepted": shares, "packs": names, "answers": len(with_pack)}


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--packs", type=Path, default=Path("packs"))
    command.add_argument("--n", type=int, default=6)
    options = command.parse_args()
    found = measure(options.data, options.packs, options.n)
    took = found["step_s"]
    rows = []
    for name, own, drafter in (("base without packs", "pack", "base 1"), ("base in 4 bits", "base", "int4 1")):
        verifying = {n - 1: took[f"{own} {n}"] / took[f"{own} 1"] for n in ROWS[1:]}
        drafting, share = took[drafter] / took[f"{own} 1"], found["accepted"][name]
        gain, k = best(share, drafting, verifying)
        perfect, _ = best(1.0, drafting, verifying)
        costs = ", ".join(f"{k + 1} rows {cost:.2f}" for k, cost in verifying.items())
        rows.append((name, f"{drafting:.2f}", costs, f"{share:.0%}", f"{gain:.2f} (k = {k})", f"{perfect:.2f}"))
    head = ("drafter", "its step", "steps of more rows", "drafts taken", "best speed-up", "if all were taken")
    text = f"Costs in single steps of the int8 base with one pack, or without; {found['answers']} answers of "
    text += f"{', '.join(found['packs'])}. Drafts looked up in the text need no steps of a drafter: the engine uses those.\n\n"
    publish(options, found, "Drafting with a second model", text + table(head, rows), "drafters.md")


if __name__ == "__main__":
    main()
