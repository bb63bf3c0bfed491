"""What storing a pack in fewer bits costs: scores of a float32 pack and of its exports on held-out lines.

    python infer/export_cost.py PACK FILE [FILE ...] [--base NAME|PATH] [--limit N] [--json] [--write]

PACK is a directory as `mbjax pack train` writes it, FILE holds the lines of its domain as for `mbjax pack eval`;
`--limit` takes an even choice of so many lines of each task. The same lines for all three, so the differences are
paired; their 95% intervals are bootstrapped. Allowed: 0.5 points for int8 and 2 for int4, or as many hundredths of the
float32 pack's bits per byte. With `--write` the rows go to docs/export_cost.md. Exits with 1 where the cost is
beyond what is allowed.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from intervals import gap, interval
from report import parser, publish, table

from mbjax.engine.engine import Engine
from mbjax.engine.evaluate import evaluate, summarise
from mbjax.engine.pack_eval import tasks_of
from mbjax.errors import MbjaxError
from mbjax.io.load import load_base
from mbjax.io.pack_dir import read_pack
from mbjax.io.pack_export import export

ALLOWED = {"float32": 0.0, "int8": 0.005, "int4": 0.02}


def measure(pack: Path, files: list[Path], base: str, limit: int | None) -> list[dict[str, Any]]:
    """A row for each task of the files."""
    tasks = {task: items for file in files for task, items in tasks_of(file, limit).items()}
    manifest = read_pack(pack).manifest
    results: dict[str, dict[str, list[dict[str, Any]]]] = {task: {} for task in tasks}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ALLOWED:
            export(pack, Path(folder) / dtype / manifest.id, lambda: load_base(base), dtype=dtype)
            with Engine.load(base, packs=Path(folder) / dtype) as engine:
                for task, items in tasks.items():
                    results[task][dtype] = evaluate(engine, items, pack=manifest.id).items
                    print(f"{manifest.id}: {task} in {dtype}", file=sys.stderr, flush=True)
    return [row_of(manifest.id, task, tasks[task], found) for task, found in results.items()]


def row_of(pack: str, task: str, items: Any, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Values, and what each export loses against float32: shares of lines, or of the bits per byte."""
    summaries = {dtype: summarise(items, results) for dtype, results in found.items()}
    metric, whole = summaries["float32"]["metric"], summaries["float32"]["value"]
    row: dict[str, Any] = {"pack": pack, "task": task, "metric": metric, "n": len(items)}
    sign, unit = (1, whole) if metric == "bits_per_byte" else (-1, 1.0)
    for dtype, results in found.items():
        lost, ends = gap(results, found["float32"])
        row[dtype] = {
            "value": summaries[dtype]["value"],
            "interval": interval(results),
            "lost": sign * lost / unit,
            "lost_interval": sorted(sign * end / unit for end in ends),
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
        "byte,\nwith 95% intervals over the lines. Allowed: 0.5 and 2.\n\n" + table(head, lines)
    )


def main() -> None:
    options = parser(__doc__)
    options.add_argument("pack", type=Path)
    options.add_argument("files", type=Path, nargs="+")
    options.add_argument("--base", default="smollm2-135m")
    options.add_argument("--limit", type=int)
    chosen = options.parse_args()
    try:
        rows = measure(chosen.pack, chosen.files, chosen.base, chosen.limit)
    except MbjaxError as error:
        options.exit(error.exit_status, f"{error}\n")
    publish(chosen, {"rows": rows}, "What storing a pack in fewer bits costs", page(rows), "export_cost.md")
    missed = [f"{r['task']} in {d}" for r in rows for d, most in ALLOWED.items() if r[d]["lost"] > most]
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
