"""Every pack on every domain's held-out set: base, each pack forced, the router's choice, and the oracle's.

    python infer/matrix.py --data DIR --packs packs [--only DOMAIN] [--limit DOMAIN=N ...] [--keep DIR]
        [--baselines FILE] [--write docs] [--scores] [--json]

DIR/NAME/test.jsonl holds the held-out lines of the domain whose pack is called NAME (and DIR/NAME/test_*.jsonl more of
them, in other forms); `--limit` takes an even choice of so many lines of each of a domain's tasks. The oracle always
uses the domain's own pack. The results of each choice of packs are put down in `--keep`, piece by piece; what is there
for the same packs and lines is not measured again, so an interrupted run goes on, and several processes may share the
work. `--baselines` is what `python train/baselines.py DIR/NAME ... --json` printed. With `--write` the table goes to
docs/matrix.md and its heat map to docs/matrix.png, with `--scores` every pack gets its rows as scores.

On an accelerator set JAX_DEFAULT_MATMUL_PRECISION=highest: float32 then gives what it gives on a CPU.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intervals import gap, interval, macro_f1
from matrix_page import heat_map, page, table, write_scores
from matrix_parts import Identity, Parts, hash_of

from mbjax.engine.compile_cache import use_compile_cache
from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import Item, Question
from mbjax.engine.evaluate import WAYS_TO_CHOOSE, summarise
from mbjax.engine.pack_eval import tasks_of
from mbjax.errors import MbjaxError
from mbjax.io.files import atomic_write

FEW_ANSWERS = 10  # classes of which a macro-F1 says something


def rows_of(parts: Parts, engine: Engine, domain: str, tasks: dict[str, list[Item]]) -> list[dict[str, Any]]:
    """The lines of the matrix that a file of held-out items gives, one for each of its tasks: value and interval for
    each choice of packs. What says most is measured first: base, own pack, the wrong ones; then the router's choice,
    most of which is one of these."""
    others = [pack for pack in engine.packs.ids() if pack != domain]
    found = parts.results(engine, ["none", domain, *others, "auto"])
    rows, at = [], 0
    for task, own in tasks.items():
        results = {use: of_file[at : at + len(own)] for use, of_file in found.items()}
        at += len(own)
        metric = summarise(own, results["none"])["metric"]
        rows.append({"task": task, "metric": metric, "n": len(own), "cells": cells_of(own, results, domain)})
    return rows


def cells_of(items: Sequence[Item], results: dict[str, list[dict[str, Any]]], domain: str) -> dict[str, dict[str, Any]]:
    """The cells of one line from the results of each choice of packs."""
    cells = {use: cell_of(items, own) for use, own in results.items()}
    exact = [[e["pack"] for e in item["route"] if e["pack"] != "chat"] for item in results["auto"]]
    wanted = [] if domain == "chat" else [domain]
    cells["auto"]["routed_right"] = sum(route == wanted for route in exact) / len(exact)
    cells["auto"]["gap"] = gap(results["auto"], results[domain])
    return cells


def cell_of(items: Sequence[Item], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Value and interval of one choice of packs."""
    summary = summarise(items, results)
    more = {name: summary[name] for name in WAYS_TO_CHOOSE if name in summary} or _classes(items, results)
    return {"value": summary["value"], "interval": interval(results), **more}


def _classes(items: Sequence[Item], results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The macro-F1 of questions that have few answers."""
    answers = [item.answer for item in items if isinstance(item, Question) and item.match == "exact"]
    if not answers or len(set(answers)) > FEW_ANSWERS:
        return {}
    return {"macro_f1": macro_f1(answers, [result["text"] for result in results])}


def matrix(engine: Engine, data: Path, keep: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows, for the domains that have a pack; from `keep` what is there already."""
    domains = [pack for pack in engine.packs.ids() if (data / pack).is_dir() and options.only in (None, pack)]
    packs = {pack: Identity.of(options.packs / pack) for pack in engine.packs.ids()}
    rows = []
    for domain in domains:
        for path in sorted((data / domain).glob("test*.jsonl")):
            split = hash_of(path.read_bytes())
            about = {"domain": domain, "file": path.name, "split_digest": split, "dtype": options.dtype,
                     "gates": options.gates}  # fmt: skip
            tasks = tasks_of(path, options.limit.get(domain))
            parts = Parts(keep, about, [item for own in tasks.values() for item in own], packs)
            own = rows_of(parts, engine, domain, tasks)
            rows += [about | row | {"devices": sorted(parts.devices)} for row in own]
    return rows


def read_baselines(path: Path | None) -> dict[tuple[str, str], dict[str, float]]:
    """(domain, task) -> baseline -> value, of each task's own metric."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for score in json.loads(path.read_text(encoding="utf-8"))["scores"] if path is not None else ():
        if score["metric"] != "macro_f1":
            found.setdefault((score["data"], score["task"]), {})[score["baseline"]] = score["value"]
    return found


def _limit(text: str) -> tuple[str, int]:
    domain, _, n = text.partition("=")
    if not domain or not n.isdigit() or int(n) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no limit: give DOMAIN=N, such as medical=400")
    return domain, int(n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--packs", type=Path, default=Path("packs"))
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", metavar="DOMAIN")
    parser.add_argument("--limit", type=_limit, nargs="+", default=[], metavar="DOMAIN=N")
    parser.add_argument("--gates", default="root", help="one, root or share")
    parser.add_argument("--keep", type=Path, default=Path("runs/matrix"), metavar="DIR")
    parser.add_argument("--baselines", type=Path, metavar="FILE")
    parser.add_argument("--write", type=Path, metavar="DOCS")
    parser.add_argument("--scores", action="store_true", help="write the rows into the packs")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.limit = dict(options.limit)
    use_compile_cache()
    try:
        engine = Engine.load(options.base, packs=options.packs, dtype=options.dtype, gate_rule=options.gates)
        rows, packs = matrix(engine, options.data, options.keep, options), engine.packs.ids()
        for note in engine.take_notes():
            print(note, file=sys.stderr)
        baselines = read_baselines(options.baselines)
        if options.scores:
            write_scores(rows, baselines, options.packs, engine.base, limits=options.limit)
    except MbjaxError as error:
        parser.exit(error.exit_status, f"{error}\n")
    if options.write is not None:
        with atomic_write(options.write / "matrix.md") as file:
            file.write(page(rows, packs, baselines, f"python infer/matrix.py {' '.join(sys.argv[1:])}").encode())
        heat_map(rows, packs, options.write / "matrix.png")
    print(json.dumps({"rows": rows}) if options.json else table(rows, packs, baselines))


if __name__ == "__main__":
    main()
