"""Every pack on every domain's held-out set: base, each pack forced, the router's choice, and the oracle's.

    python infer/matrix.py --data DIR --packs packs [--limit N] [--write docs] [--json]

DIR/NAME/test.jsonl holds the held-out lines of the domain whose pack is called NAME (and DIR/NAME/test_*.jsonl more of
them, in other forms); `--limit` takes an even choice of so many lines of each task. The oracle always uses the
domain's own pack. With `--write` the table goes to docs/matrix.md and its heat map to docs/matrix.png.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from intervals import interval

from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import Item
from mbjax.engine.evaluate import evaluate
from mbjax.engine.pack_eval import tasks_of
from mbjax.io.files import atomic_write

LOWER_IS_BETTER = ("bits_per_byte",)


def row_of(engine: Engine, domain: str, task: str, items: Sequence[Item]) -> dict[str, Any]:
    """One line of the matrix: value and interval for each choice of packs."""
    known: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    cells: dict[str, dict[str, Any]] = {}
    summary: dict[str, Any] = {}
    for use in ("none", *engine.packs.ids(), "auto"):
        print(f"{domain} {task}: {use}", file=sys.stderr, flush=True)
        result = evaluate(engine, items, pack=use, known=known if use == "auto" else None)
        if use != "auto":
            known[() if use == "none" else (use,)] = result.items
        summary = result.summary
        cells[use] = {"value": summary["value"], "interval": interval(result.items)}
        if use == "auto":
            exact = [[e["pack"] for e in item["route"] if e["pack"] != "chat"] for item in result.items]
            wanted = [] if domain == "chat" else [domain]
            cells[use]["routed_right"] = sum(route == wanted for route in exact) / len(exact)
    return {"domain": domain, "task": task, "metric": summary["metric"], "n": len(items), "cells": cells}


def matrix(engine: Engine, data: Path, limit: int | None) -> list[dict[str, Any]]:
    """All rows, for the domains that have a pack."""
    domains = [pack for pack in engine.packs.ids() if (data / pack).is_dir()]
    files = [(domain, path) for domain in domains for path in sorted((data / domain).glob("test*.jsonl"))]
    return [row_of(engine, d, task, items) for d, path in files for task, items in tasks_of(path, limit).items()]


def table(rows: Sequence[dict[str, Any]], packs: Sequence[str]) -> str:
    """Markdown; the domain's own pack, which is the oracle's choice, in bold."""
    head = ["domain", "task", "metric", "n", "base", *packs, "routed", "routed right"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [row["domain"], row["task"], row["metric"], str(row["n"]), _shown(row["cells"]["none"])]
        for pack in packs:
            text = _shown(row["cells"][pack])
            cells.append(f"**{text}**" if pack == row["domain"] else text)
        routed = row["cells"]["auto"]
        lines.append("| " + " | ".join([*cells, _shown(routed), f"{routed['routed_right']:.1%}"]) + " |")
    return "\n".join(lines) + "\n"


def _shown(cell: dict[str, Any]) -> str:
    low, high = cell["interval"]
    return f"{cell['value']:.3f} [{low:.3f}, {high:.3f}]"


def heat_map(rows: Sequence[dict[str, Any]], packs: Sequence[str], path: Path) -> None:
    """What each choice gains over the base, as a share of the own pack's gain: 1 where it does as well."""
    from matplotlib.figure import Figure

    columns = [*packs, "auto"]
    gains = np.zeros((len(rows), len(columns)))
    for i, row in enumerate(rows):
        base, own = row["cells"]["none"]["value"], row["cells"][row["domain"]]["value"]
        for j, use in enumerate(columns):
            gains[i, j] = (row["cells"][use]["value"] - base) / (own - base) if own != base else 0.0
    figure = Figure(figsize=(2 + 0.9 * len(columns), 1.5 + 0.4 * len(rows)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(np.clip(gains, -1, 1), cmap="RdYlGn", vmin=-1, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), [*packs, "routed"], rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [f"{row['domain']}: {row['task']}" for row in rows])
    for i in range(len(rows)):
        for j in range(len(columns)):
            axes.text(j, i, f"{gains[i, j]:.2f}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, label="gain over the base, the own pack's = 1")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--packs", type=Path, default=Path("packs"))
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--gates", default="root", help="one, root or share")
    parser.add_argument("--write", type=Path, metavar="DOCS")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    engine = Engine.load(options.base, packs=options.packs, dtype=options.dtype, gate_rule=options.gates)
    rows, packs = matrix(engine, options.data, options.limit), engine.packs.ids()
    for note in engine.take_notes():
        print(note, file=sys.stderr)
    text = table(rows, packs)
    if options.write is not None:
        command = f"python infer/matrix.py {' '.join(sys.argv[1:])}"
        page = f"# Every pack on every domain\n\n`{command}`\n\n{text}\n![gains](matrix.png)\n"
        with atomic_write(options.write / "matrix.md") as file:
            file.write(page.encode())
        heat_map(rows, packs, options.write / "matrix.png")
    print(json.dumps({"rows": rows}) if options.json else text)


if __name__ == "__main__":
    main()
