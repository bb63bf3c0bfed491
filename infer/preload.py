"""What preloading saves: the predictor against plain least-recently-used, on a recorded sequence of routed prompts.

    python infer/preload.py --data DIR --packs packs [--n 500] [--slots 2,3] [--record FILE] [--json] [--write]
    python infer/preload.py --routes FILE [...]

DIR/NAME/test*.jsonl holds held-out prompts of the domains. The order of subjects is that of a made-up user with habits
(seeded): mostly the same subject goes on, else the one that usually follows it, else any. Each prompt goes through the
router, and the routes make the sequence; `--record` keeps it, and `--routes` reads such a file (lines of pack lists).
A hit is a prompt all of whose packs are in memory when the router has chosen them.
"""

import json
import random
from pathlib import Path
from typing import Any

from report import parser, publish, table

from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import read_items
from mbjax.engine.predictor import Predictor
from mbjax.engine.residency import Residency
from mbjax.engine.route_all import route_all

STAY, HABIT = 0.55, 0.30  # of the next prompt: the same subject, the one that usually follows


def prompts_of(data: Path, domains: list[str], n: int) -> list[str]:
    """n prompts in the order of the made-up user."""
    chance = random.Random(7)
    pools = {d: [p for f in sorted((data / d).glob("test*.jsonl")) for i in read_items(f) if (p := _prompt(i))]
             for d in domains}  # fmt: skip
    pools = {domain: pool for domain, pool in pools.items() if pool}
    names = sorted(pools)
    follows = {name: names[(i + 1) % len(names)] for i, name in enumerate(chance.sample(names, len(names)))}
    now, prompts = names[0], []
    for _ in range(n):
        prompts.append(chance.choice(pools[now]))
        draw = chance.random()
        now = now if draw < STAY else follows[now] if draw < STAY + HABIT else chance.choice(names)
    return prompts


def _prompt(item: Any) -> str | None:
    return getattr(item, "prompt", None)


def routes_of(engine: Engine, prompts: list[str]) -> list[list[str]]:
    found = route_all(engine, [engine.read(prompt) for prompt in prompts])
    return [[item.pack for item in route] for route in found]


def hit_rate(routes: list[list[str]], slots: int, *, predicting: bool) -> float:
    """The share of prompts with packs whose packs are all there; `slots` packs fit."""
    memory, predictor = Residency(slots), Predictor()
    hits = asked = 0
    for route in routes:
        if predicting:
            for pack in predictor.likely(slots):
                _bring(memory, pack)
        if route:
            asked += 1
            hits += all(pack in memory for pack in route)
        for pack in route:
            _bring(memory, pack)
        predictor.saw(tuple(route))
    return hits / max(1, asked)


def _bring(memory: Residency, pack: str) -> None:
    for other in () if pack in memory else memory.leaving(1, ()) or ():
        memory.drop(other)
    memory.put(pack, 1)


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--data", type=Path)
    command.add_argument("--packs", type=Path, default=Path("packs"))
    command.add_argument("--base", default="smollm2-135m")
    command.add_argument("--n", type=int, default=500)
    command.add_argument("--slots", default="2,3")
    command.add_argument("--record", type=Path)
    command.add_argument("--routes", type=Path)
    options = command.parse_args()
    if options.routes is not None:
        routes = [json.loads(line) for line in options.routes.read_text().splitlines()]
    else:
        if options.data is None:
            command.error("give --data DIR or --routes FILE")
        with Engine.load(options.base, packs=options.packs) as engine:
            domains = [pack for pack in engine.packs.ids() if (options.data / pack).is_dir()]
            routes = routes_of(engine, prompts_of(options.data, domains, options.n))
    if options.record is not None:
        options.record.write_text("".join(json.dumps(route) + "\n" for route in routes))
    packs = sorted({pack for route in routes for pack in route})
    rates = [
        {"slots": n, "lru": hit_rate(routes, n, predicting=False), "predicted": hit_rate(routes, n, predicting=True)}
        for n in (int(part) for part in options.slots.split(","))
    ]
    rows = [(rate["slots"], f"{rate['lru']:.1%}", f"{rate['predicted']:.1%}") for rate in rates]
    found = {"prompts": len(routes), "packs": packs, "rates": rates}
    text = f"{len(routes)} prompts over {len(packs)} packs ({', '.join(packs)}).\n\n"
    text += table(("packs that fit", "least recently used", "with the predictor"), rows)
    publish(options, found, "Preloading packs", text, "preload.md")


if __name__ == "__main__":
    main()
