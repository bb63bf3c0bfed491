"""What storing a pack in fewer bits costs: scores of a float32 pack and of its exports on held-out lines.

    python infer/export_cost.py PACK [PACK ...] --data DIR [--base NAME|PATH] [--dtype DTYPE] [--limit N] [--json]
        [--write]

PACK is a directory as `mbjax pack train` writes it, DIR/NAME/test*.jsonl holds the lines of the domain of the pack
NAME; `--limit` takes an even choice of so many lines of each task, `--dtype` is that of the base. The same lines for all
three, so the differences are paired; their 95% intervals are bootstrapped. Allowed: 0.5 points for int8 and 2 for int4,
or as many hundredths of the float32 pack's bits per byte, of all tasks together that a pack has of one metric. With
`--write` the rows go to docs/export_cost.md. Exits with 1 where the cost is beyond what is allowed.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from intervals import gap, interval
from report import parser, publish, table

from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import Item
from mbjax.engine.evaluate import evaluate, summarise
from mbjax.engine.pack_eval import tasks_of
from mbjax.errors import InputError, MbjaxError
from mbjax.io.load import load_base
from mbjax.io.pack_dir import read_pack
from mbjax.io.pack_export import export

ALLOWED = {"float32": 0.0, "int8": 0.005, "int4": 0.02}

Results = dict[str, list[dict[str, Any]]]  # by dtype


def measure(pack: Path, data: Path, base: str, base_dtype: str, limit: int | None) -> list[dict[str, Any]]:
    """A row for each task of the pack's domain. Raises InputError where there is none."""
    manifest = read_pack(pack).manifest
    files = sorted((data / manifest.id).glob("test*.jsonl"))
    if not files:
        raise InputError(f"{data / manifest.id}: has no test*.jsonl; build the data of the pack's domain")
    tasks = {task: items for file in files for task, items in tasks_of(file, limit).items()}
    results: dict[str, Results] = {task: {} for task in tasks}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ALLOWED:
            export(pack, Path(folder) / dtype / manifest.id, lambda: load_base(base), dtype=dtype)
            with Engine.load(base, packs=Path(folder) / dtype, dtype=base_dtype) as engine:
                for task, items in tasks.items():
                    results[task][dtype] = evaluate(engine, items, pack=manifest.id).items
                    print(f"{manifest.id}: {task} in {dtype}", file=sys.stderr, flush=True)
    rows = [row_of(manifest.id, task, tasks[task], found) for task, found in results.items()]
    return [*rows, *(whole_row(manifest.id, *lines) for lines in of_one_metric(rows, tasks, results))]


def of_one_metric(
    rows: list[dict[str, Any]], tasks: dict[str, list[Item]], results: dict[str, Results]
) -> list[tuple[list[Item], Results]]:
    """The lines of all tasks that are measured alike, where there are several."""
    found = []
    for metric in dict.fromkeys(row["metric"] for row in rows):
        alike = [row["task"] for row in rows if row["metric"] == metric]
        if len(alike) > 1:
            joined = {d: [line for task in alike for line in results[task][d]] for d in ALLOWED}
            found.append(([item for task in alike for item in tasks[task]], joined))
    return found


def whole_row(pack: str, items: list[Item], found: Results) -> dict[str, Any]:
    """The row of several tasks together: a task of a hundred lines cannot tell half a point."""
    return {**row_of(pack, "together", items, found), "whole": True}


def row_of(pack: str, task: str, items: list[Item], found: Results) -> dict[str, Any]:
    """Values, and what each export loses against float32: shares of lines, or of the bits per byte."""
    summaries = {dtype: summarise(items, results) for dtype, results in found.items()}
    metric, whole = summaries["float32"]["metric"], summaries["float32"]["value"]
    row: dict[str, Any] = {"pack": pack, "task": task, "metric": metric, "n": len(items)}
    row["device"] = jax.devices()[0].device_kind
    sign, unit = (1, whole) if metric == "bits_per_byte" else (-1, 1.0)
    for dtype, results in found.items():
        lost, ends = gap(results, found["float32"])
        row[dtype] = {
            "value": summaries[dtype]["value"],
            "interval": interval(results),
            "lost": sign * lost / unit + 0.0,  # never -0
            "lost_interval": sorted(sign * end / unit + 0.0 for end in ends),
        }
    return row


def page(rows: list[dict[str, Any]]) -> str:
    head = ["pack", "task", "metric", "n", "float32", "int8", "int4", "int8 loses", "int4 loses"]

    def lost(cell: dict[str, Any]) -> str:
        low, high = cell["lost_interval"]
        return f"{cell['lost']:+.2%} [{low:+.2%}, {high:+.2%}]"

    lines = [
        [row["pack"], row["task"], row["metric"], row["n"], *(f"{row[dtype]['value']:.4f}" for dtype in ALLOWED)]
        + [lost(row[dtype]) for dtype in ("int8", "int4")]
        for row in rows
    ]
    return (
        "A pack trained in float32, and exported; losses in points of the score, or in hundredths of the bits per "
        "byte,\nwith 95% intervals over the lines. Allowed: 0.5 and 2.\n\n"
        f"Measured on: {', '.join(sorted({row['device'] for row in rows}))}.\n\n{table(head, lines)}"
    )


def beyond(rows: list[dict[str, Any]]) -> list[str]:
    """What loses more than is allowed; a task that is part of a larger row counts there."""
    parts = {(row["pack"], row["metric"]) for row in rows if row.get("whole")}
    judged = [row for row in rows if row.get("whole") or (row["pack"], row["metric"]) not in parts]
    return [f"{r['pack']}, {r['task']} in {d}" for r in judged for d, most in ALLOWED.items() if r[d]["lost"] > most]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("packs", type=Path, nargs="+", metavar="PACK")
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--base", default="smollm2-135m")
    options.add_argument("--dtype", default="auto")
    options.add_argument("--limit", type=int)
    chosen = options.parse_args()
    try:
        measured = [measure(pack, chosen.data, chosen.base, chosen.dtype, chosen.limit) for pack in chosen.packs]
    except MbjaxError as error:
        options.exit(error.exit_status, f"{error}\n")
    rows = [row for part in measured for row in part]
    publish(chosen, {"rows": rows}, "What storing a pack in fewer bits costs", page(rows), "export_cost.md")
    if missed := beyond(rows):
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
