"""What one more pack changes for all others: the routes of their held-out prompts with and without it.

    python infer/extension.py --data DIR --packs packs --added PACK [--limit N] [--write docs] [--json]

PACK is a pack directory with a route key for the router among `--packs`; it is laid beside copies of them, and nothing
else changes. DIR/NAME/test*.jsonl holds the held-out prompts of the domain whose pack is called NAME; free-form,
foreign and two-domain prompts are those of infer/data. Every prompt whose packs or gates differ is listed, and what the
added pack is worth, by its own scores (`mbjax pack eval PACK FILE --write`). With `--write` this goes to
docs/extension.md.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intervals import wilson
from report import progress
from routing import asking, by_hand, held_out

from mbjax.engine.engine import Engine
from mbjax.engine.reply import RouteItem
from mbjax.engine.route_all import route_all
from mbjax.errors import MbjaxError
from mbjax.io.files import atomic_write
from mbjax.io.pack_dir import read_pack
from mbjax.io.pack_scores import Score, score_json

_KEPT = "It is laid beside the others; neither they nor the router are touched, and nothing is trained again."
SHOWN = 100  # characters of a listed prompt


def routes(base: str, dtype: str, packs: Path, asked: Sequence[dict[str, Any]], text: str) -> list[list[RouteItem]]:
    """The route of each prompt with the packs of a directory."""
    engine = Engine.load(base, packs=packs, dtype=dtype)
    return route_all(engine, [engine.read(line["prompt"]) for line in asked], progress(f"{text}: routed", 200))


def compare(base: str, dtype: str, packs: Path, added: Path, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each prompt with its packs and gates before and after."""
    before = routes(base, dtype, packs, asked, "without")
    with tempfile.TemporaryDirectory() as folder:
        both = Path(folder) / "packs"
        shutil.copytree(packs, both)
        shutil.copytree(added, both / added.name)
        after = routes(base, dtype, both, asked, "with")
    return [
        {**line, "before": _chosen(old), "after": _chosen(new)}
        for line, old, new in zip(asked, before, after, strict=True)
    ]


def _chosen(route: Sequence[RouteItem]) -> dict[str, float]:
    return {item.pack: round(item.gate, 4) for item in route}


def summary(results: Sequence[dict[str, Any]], added: str) -> list[dict[str, Any]]:
    """By set: how many routes changed, and on how many prompts the new pack was selected."""
    rows = []
    for name in dict.fromkeys(result["set"] for result in results):
        part = [result for result in results if result["set"] == name]
        changed = sum(result["before"] != result["after"] for result in part)
        rows.append({"set": name, "n": len(part), "changed": changed, "interval": wilson(changed, len(part)),
                     "selected": sum(added in result["after"] for result in part)})  # fmt: skip
    return rows


def others_held_out(rows: Sequence[dict[str, Any]], added: str) -> list[dict[str, Any]]:
    """The rows of the held-out prompts of the domains that were there before."""
    return [row for row in rows if row["set"].startswith("held-out") and row["set"] != f"held-out {added}"]


def weighed(rows: Sequence[dict[str, Any]], sizes: dict[str, int]) -> float:
    """The share of changed routes where each set weighs as much as it has prompts in all, by `sizes`."""
    return sum(row["changed"] / row["n"] * sizes[row["set"]] for row in rows) / sum(sizes[row["set"]] for row in rows)


def worth(scores: Sequence[Score]) -> list[str]:
    """The table of the added pack's own scores, as Markdown lines; none where it has none."""
    if not scores:
        return []
    lines = ["What it is worth, by its own scores:", "", "| task | metric | n | base | pack | routed |", "|---|---|---|---|---|---|"]  # fmt: skip
    for score in scores:
        routed = "-" if score.routed is None else f"{score.routed:.3f}"
        lines.append(f"| {score.task} | {score.metric} | {score.n} | {score.base:.3f} | {score.pack:.3f} | {routed} |")
    return [*lines, ""]


def page(
    rows: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    command: str,
    added: str,
    told: Sequence[str] = (),
) -> str:
    """Tables and list, as Markdown; `told` are lines that stand before them."""
    lines = [f"# What the pack `{added}` changes for the others", "", f"`{command}`", "", _KEPT, "", *told]
    lines += [f"| set | n | routes changed | 95% | `{added}` selected |", "|---|---|---|---|---|"]
    held = others_held_out(rows, added)
    if held:
        n, changed = (sum(row[key] for row in held) for key in ("n", "changed"))
        total = {"set": "held-out, all other domains", "n": n, "changed": changed, "interval": wilson(changed, n)}
        rows = [total | {"selected": sum(row["selected"] for row in held)}, *rows]
    for row in rows:
        low, high = row["interval"]
        share = f"{row['changed']} ({row['changed'] / row['n']:.2%})"
        lines.append(f"| {row['set']} | {row['n']} | {share} | {low:.2%} to {high:.2%} | {row['selected']} |")
    lines += ["", "Prompts of other sets whose route changed:", ""]
    for result in results:
        if result["before"] != result["after"] and result["set"] != f"held-out {added}":
            lines.append(f"- {result['set']}: {_short(result['prompt'])}: {_plain(result)}")
    return "\n".join(lines) + "\n"


def _short(prompt: Any) -> str:
    text = " ".join(str(prompt if isinstance(prompt, str) else prompt[-1]["content"]).split()).replace("`", "'")
    return f"`{text[:SHOWN]}`"


def _plain(result: dict[str, Any]) -> str:
    before, after = (" + ".join(result[key]) or "the base" for key in ("before", "after"))
    return f"{before} before, {after} now"


def main() -> None:
    parser = asking(__doc__, "float32")
    parser.add_argument("--added", type=Path, required=True)
    options = parser.parse_args()
    added = options.added.name
    domains = sorted(path.parent.name for path in options.packs.glob("*/pack.json"))
    sets = [held_out(options.data, pack, options.limit) for pack in (*domains, added) if (options.data / pack).is_dir()]
    try:
        asked = [line for part in sets for line in part] + by_hand()
        stored = read_pack(options.added)
        results = compare(options.base, options.dtype, options.packs, options.added, asked)
    except MbjaxError as error:
        parser.exit(error.exit_status, f"{error}\n")
    rows = summary(results, added)
    sizes = {f"held-out {pack}": len(held_out(options.data, pack, None)) for pack in domains}
    told = worth(stored.scores)
    if held := others_held_out(rows, added):
        share = f"{weighed(held, sizes):.2%} of the routes of the other domains change"
        told += [f"Weighed by how many held-out prompts each domain has, {share}.", ""]
    text = page(rows, results, f"python infer/extension.py {' '.join(sys.argv[1:])}", added, told)
    if options.write is not None:
        with atomic_write(options.write / "extension.md") as file:
            file.write(text.encode())
    changed = [result for result in results if result["before"] != result["after"]]
    found = {"sets": rows, "changed": changed, "scores": [score_json(score) for score in stored.scores]}
    print(json.dumps(found, ensure_ascii=False) if options.json else text)


if __name__ == "__main__":
    main()
