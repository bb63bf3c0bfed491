"""How well packs are found: held-out prompts, free-form ones, foreign ones, two domains at once, follow-ups.

    python infer/routing.py --data DIR --packs packs [--limit N] [--write docs] [--json]

DIR/NAME/test*.jsonl holds the held-out prompts of the domain whose pack is called NAME; what people wrote by hand lies
beside this program in infer/data. Right is a selected set that, the chat pack left out, is exactly the prompt's
domain; a foreign prompt is wrong where any pack but chat is selected. General text is measured in bits per byte with
routing on and with the base alone. With `--write` table and reliability diagram go to docs/routing.md and .png.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from intervals import wilson
from report import progress

from mbjax.core.router import FEWEST_TOKENS, RESIDENT
from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import read_items
from mbjax.engine.evaluate import evaluate
from mbjax.engine.route_all import route_all
from mbjax.engine.route_file import selected
from mbjax.io.even_choice import even_choice
from mbjax.io.files import atomic_write

HAND = Path(__file__).parent / "data"
BINS = 10


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def held_out(data: Path, pack: str, limit: int | None) -> list[dict[str, Any]]:
    """The prompts of a domain's held-out files, with what they should call for."""
    prompts = [line["prompt"] for path in sorted((data / pack).glob("test*.jsonl")) for line in lines_of(path)]
    prompts = even_choice(list(dict.fromkeys(prompts)), limit)
    return [{"prompt": prompt, "set": f"held-out {pack}", "want": [pack]} for prompt in prompts]


def by_hand() -> list[dict[str, Any]]:
    """The sets in infer/data."""
    found = []
    for line in lines_of(HAND / "freeform.jsonl"):
        found.append({"prompt": line["prompt"], "set": "free-form", "want": [line["domain"]]})
    for line in lines_of(HAND / "foreign.jsonl"):
        found.append({"prompt": line["prompt"], "set": "foreign", "want": []})
    for line in lines_of(HAND / "two_domain.jsonl"):
        name = "two domains" + (", written later" if "written" in line else "")
        found.append({"prompt": line["prompt"], "set": name, "want": line["domains"]})
    for line in lines_of(HAND / "follow_ups.jsonl"):
        found.append({"prompt": line["messages"], "set": "follow-ups", "want": line["route"]})
    return found


def measure(engine: Engine, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each line with its route, and whether that is right."""
    prompts = [engine.read(line["prompt"]) for line in asked]
    routes = route_all(engine, prompts, progress("routed", 100))
    found = []
    for line, route in zip(asked, routes, strict=True):
        chosen, want = selected(route), frozenset(line["want"]) - {RESIDENT}
        entry = {"right": chosen == want, "all_wanted": want <= chosen, "scores": {e.pack: e.score for e in route}}
        found.append({**line, **entry})
    return found


def summaries(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Shares by set."""
    rows = []
    for name in dict.fromkeys(result["set"] for result in results):
        part = [result for result in results if result["set"] == name]
        row = {"set": name, "n": len(part)}
        for key in ("right", "all_wanted"):
            n = sum(result[key] for result in part)
            row[key] = {"share": n / len(part), "interval": wilson(n, len(part))}
        rows.append(row)
    return rows


def reliability(engine: Engine, asked: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Of all scores, every pack on every prompt: mean score, share of prompts that are the pack's, and number by bin."""
    assert engine.routing is not None
    scores, truth = [], []
    for line in asked:
        for pack, score in engine.scores(engine.read(line["prompt"])).items():
            scores.append(score)
            truth.append(pack in line["want"])
    values, own = np.array(scores), np.array(truth, bool)
    at = np.minimum((values * BINS).astype(int), BINS - 1)
    full = [i for i in range(BINS) if (at == i).any()]
    return [
        {"score": float(values[at == i].mean()), "share": float(own[at == i].mean()), "n": int((at == i).sum())}
        for i in full
    ]


def general_text(engine: Engine) -> dict[str, Any]:
    """Bits per byte of general text with routing on, and of the base alone."""
    items = read_items(HAND / "general.jsonl")
    base = evaluate(engine, items, pack="none")
    routed = evaluate(engine, items, pack="auto", known={(): base.items})
    taken = sum(bool(item["route"]) for item in routed.items)
    values = {"base": base.summary["value"], "routed": routed.summary["value"]}
    return {**values, "n": len(items), "with_a_pack": taken, "change": values["routed"] / values["base"] - 1}


def draw(bins: Sequence[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], linestyle="--", linewidth=0.8, color="grey")
    axes.plot([b["score"] for b in bins], [b["share"] for b in bins], marker="o")
    for b in bins:
        axes.annotate(f"{b['n']:.0f}", (b["score"], b["share"]), fontsize=7, xytext=(4, -8), textcoords="offset points")
    axes.set(xlabel="score", ylabel="share of prompts that are the pack's", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def table(rows: Sequence[dict[str, Any]], general: dict[str, Any]) -> str:
    lines = ["| set | n | right | 95% | all wanted packs selected |", "|---|---|---|---|---|"]
    for row in rows:
        low, high = row["right"]["interval"]
        shares = f"{row['right']['share']:.1%} | {low:.1%} to {high:.1%} | {row['all_wanted']['share']:.1%}"
        lines.append(f"| {row['set']} | {row['n']} | {shares} |")
    lines += ["", f"General text: {general['routed']:.4f} bits per byte routed, {general['base']:.4f} the base alone"]
    lines[-1] += f" ({general['change']:+.2%}); a pack was used on {general['with_a_pack']} of {general['n']} texts."
    return "\n".join(lines) + "\n"


def asking(doc: str | None, dtype: str) -> argparse.ArgumentParser:
    """With the options of programs that route held-out prompts; `dtype` is the default of the base's."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--packs", type=Path, default=Path("packs"))
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--dtype", default=dtype)
    parser.add_argument("--limit", type=int, help="held-out prompts of each domain")
    parser.add_argument("--write", type=Path, metavar="DOCS")
    parser.add_argument("--json", action="store_true")
    return parser


def main() -> None:
    options = asking(__doc__, "auto").parse_args()
    engine = Engine.load(options.base, packs=options.packs, dtype=options.dtype)
    if engine.routing is None:
        sys.exit("; ".join(engine.take_notes()))
    domains = [pack for pack in engine.packs.ids() if (options.data / pack).is_dir()]
    asked = [line for pack in domains for line in held_out(options.data, pack, options.limit)] + by_hand()
    results = measure(engine, asked)
    hand = [line for line in asked if line["set"] in ("free-form", "foreign")]
    rows, bins, general = summaries(results), reliability(engine, hand), general_text(engine)
    text = table(rows, general) + f"\nA prompt of fewer than {FEWEST_TOKENS} tokens fetches no pack but chat.\n"
    if options.write is not None:
        command = f"python infer/routing.py {' '.join(sys.argv[1:])}"
        picture = "Reliability of the scores on free-form and foreign prompts:\n\n![reliability](routing.png)\n"
        with atomic_write(options.write / "routing.md") as file:
            file.write(f"# Routing\n\n`{command}`\n\n{text}\n{picture}".encode())
        draw(bins, options.write / "routing.png")
    wrong = [{key: r[key] for key in ("prompt", "set", "want", "scores")} for r in results if not r["right"]]
    document = {"sets": rows, "reliability": bins, "general": general, "wrong": wrong}
    print(json.dumps(document, ensure_ascii=False) if options.json else text)


if __name__ == "__main__":
    main()
