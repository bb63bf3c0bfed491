"""The matrix of packs and domains as a table, as a picture, and as the packs' scores."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbjax.engine.pack_eval import put_scores
from mbjax.io.files import atomic_write
from mbjax.io.load import LoadedBase
from mbjax.io.pack_scores import Score

Baselines = Mapping[tuple[str, str], Mapping[str, float]]
LOWER_IS_BETTER = ("bits_per_byte",)


def table(rows: Sequence[dict[str, Any]], packs: Sequence[str], baselines: Baselines) -> str:
    """Markdown; the domain's own pack, which is the oracle's choice, in bold."""
    head = ["domain", "task", "metric", "n", "baseline", "base", *packs, "routed", "routed - own", "routed right"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        best = best_baseline(row, baselines)
        cells = [row["domain"], row["task"], row["metric"], str(row["n"])]
        cells += ["-" if best is None else f"{best[1]:.3f} ({best[0]})", _shown(row["cells"]["none"])]
        for pack in packs:
            text = _shown(row["cells"][pack])
            cells.append(f"**{text}**" if pack == row["domain"] else text)
        routed = row["cells"]["auto"]
        value, (low, high) = routed["gap"]
        cells += [_shown(routed), f"{value:+.3f} [{low:+.3f}, {high:+.3f}]", f"{routed['routed_right']:.1%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def best_baseline(row: dict[str, Any], baselines: Baselines) -> tuple[str, float] | None:
    """Name and value of the best classical baseline on a row's lines."""
    found = baselines.get((row["domain"], row["task"]), {})
    sign = -1 if row["metric"] in LOWER_IS_BETTER else 1
    return max(found.items(), key=lambda item: sign * item[1]) if found else None


def page(rows: Sequence[dict[str, Any]], packs: Sequence[str], baselines: Baselines, command: str) -> str:
    """docs/matrix.md."""
    devices = ", ".join(sorted({device for row in rows for device in row["devices"]}))
    dtypes = ", ".join(sorted({"its stored blocks" if row["dtype"] == "auto" else row["dtype"] for row in rows}))
    how = f"Base in {dtypes}, packs as they ship; measured on: {devices}."
    notes = [note for key, said in _MORE.items() if (note := _more(rows, packs, key, said))]
    parts = ["# Every pack on every domain", f"`{command}`", how, _READING, table(rows, packs, baselines).rstrip()]
    return "\n\n".join([*parts, *notes, "![gains](matrix.png)", *_without_row(rows, baselines)]) + "\n"


def _more(rows: Sequence[dict[str, Any]], packs: Sequence[str], key: str, said: str) -> str:
    """A table of what some rows have beside their metric; empty where none has it."""
    own = [row for row in rows if all(key in cell for cell in row["cells"].values())]
    lines = [
        f"| {row['domain']} | {row['task']} | "
        + " | ".join(
            f"**{row['cells'][use][key]:.3f}**" if use == row["domain"] else f"{row['cells'][use][key]:.3f}"
            for use in ("none", *packs, "auto")
        )
        + " |"
        for row in own
    ]
    head = f"| domain | task | base | {' | '.join(packs)} | routed |"
    return "\n".join([f"{said}:", "", head, "|" + "---|" * (len(packs) + 4), *lines]) if own else ""


def _without_row(rows: Sequence[dict[str, Any]], baselines: Baselines) -> list[str]:
    """What baselines exist for and the packs were not measured on here."""
    there = {(row["domain"], row["task"]) for row in rows}
    lines = [
        f"| {domain} | {task} | {', '.join(f'{name} {value:.3f}' for name, value in found.items())} |"
        for (domain, task), found in sorted(baselines.items())
        if (domain, task) not in there
    ]
    return (
        ["## Not measured here", "\n".join(["| domain | task | baselines |", "|---|---|---|", *lines])] if lines else []
    )


_MORE = {
    "macro_f1": "Macro-F1",
    "acc_mi": "The choices once more by `acc_mi`: a choice's likelihood less that as the answer to an empty prompt",
}
_READING = (
    "Held-out lines; 95% intervals in brackets (Wilson's for shares, bootstrap for bits per byte, where less is better,"
    " and for the difference between the router's choice and the domain's own pack). In bold the own pack, forced on"
    " every line: the oracle. Baseline: the best of `train/baselines.py` on the same split. Routed right: the packs"
    " chosen, chat left out, are exactly the domain's."
)


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


def write_scores(
    rows: Sequence[dict[str, Any]], baselines: Baselines, packs: Path, base: LoadedBase, *, limits: dict[str, int]
) -> None:
    """Gives every pack the rows of its domain as scores; wrong packs and baselines stand under `others`."""
    for domain in dict.fromkeys(row["domain"] for row in rows):
        own = [row for row in rows if row["domain"] == domain]
        scores = [score for row in own for score in _scores(row, baselines, limits.get(domain))]
        put_scores(packs / domain, scores, base)


def _scores(row: dict[str, Any], baselines: Baselines, limit: int | None) -> list[Score]:
    """The row's metric and, of choices, `acc_mi`; the baselines know nothing of that."""
    domain, cells = row["domain"], row["cells"]
    part = "" if limit is None else f" --limit {domain}={limit}"
    command = f"python infer/matrix.py --data build --only {domain} --dtype {row['dtype']}{part} --scores"
    scores = []
    for metric, key in {row["metric"]: "value", "acc_mi": "acc_mi"}.items():
        if any(key not in cell for cell in cells.values()):
            continue
        others = {use: cell[key] for use, cell in cells.items() if use not in ("none", "auto", domain)}
        if key == "value":
            others |= {f"baseline: {name}": value for name, value in baselines.get((domain, row["task"]), {}).items()}
        values = cells["none"][key], cells[domain][key]
        split = row["n"], row["split_digest"]
        scores.append(Score(row["task"], metric, *split, *values, command, cells["auto"][key], others))
    return scores
