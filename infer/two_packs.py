"""Prompts that call for two packs: what the base, each pack, both together and the router's choice answer.

    python infer/two_packs.py [--packs packs] [--base NAME|PATH] [--dtype DTYPE] [--json] [--write]

infer/data/two_domain.jsonl holds the prompts, written by hand, each with its two domains. Scored are those with an
`answer`, a number that must be the last one of the text, and those with texts that the answer `holds` (capitals aside):
together these are the parts of a prompt. "Together" forces both packs on every token with the gates of a rule, see
`mbjax/core/router.py`. "Named" and "routed" are what a user gets who names both, or leaves the choice to the router:
where the prompt falls into two parts (`mbjax/core/parts.py`) each pack answers in its own turn, elsewhere both answer
together. The better pack is, of each pair of domains, the one that has more right. With `--write` the tables go to
docs/two_packs.md.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intervals import gap, interval
from report import parser, publish, table
from routing import HAND, lines_of

from mbjax.core.router import GATE_RULE, GATE_RULES
from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import Question
from mbjax.engine.evaluate import evaluate
from mbjax.engine.match import is_right
from mbjax.errors import MbjaxError

Line = dict[str, Any]
Texts = dict[str, dict[str, Any]]  # by prompt: the result of its evaluation
SINGLE = ("first pack", "second pack")
TOGETHER = tuple(f"together, {rule}" for rule in GATE_RULES)
SETS = {"written first": lambda line: "written" not in line, "written later": lambda line: "written" in line}


def scored_lines() -> list[Line]:
    return [line for line in lines_of(HAND / "two_domain.jsonl") if "answer" in line or "holds" in line]


def parts_right(line: Line, text: str) -> list[bool]:
    """Whether each part that can be scored is right: the number, then the texts."""
    number = [is_right(line["match"], text, line["answer"])] if "answer" in line else []
    return number + [held.casefold() in text.casefold() for held in line.get("holds", ())]


def answers(engine: Engine, lines: Sequence[Line]) -> dict[str, Texts]:
    """By use: the results of every prompt."""
    alone = {"none": results_of(engine, lines, "none")}
    for pack in sorted({domain for line in lines for domain in line["domains"]}):
        alone[pack] = results_of(engine, [line for line in lines if pack in line["domains"]], pack)
    found: dict[str, Texts] = {}
    for pair, own in by_pair(lines).items():
        both = ",".join(pair)
        texts = {"base": alone["none"], "first pack": alone[pair[0]], "second pack": alone[pair[1]]}
        known = {(): listed(own, alone["none"])} | {(pack,): listed(own, alone[pack]) for pack in pair}
        texts |= {
            use: results_of(engine, own, pack, known=known) for use, pack in (("named", both), ("routed", "auto"))
        }
        for rule in GATE_RULES:
            engine.gate_rule = rule
            texts[f"together, {rule}"] = results_of(engine, own, both, parts=False)
        engine.gate_rule = GATE_RULE
        for use, results in texts.items():
            found.setdefault(use, {}).update({line["prompt"]: results[line["prompt"]] for line in own})
    return found


def results_of(engine: Engine, lines: Sequence[Line], pack: str, **settings: Any) -> Texts:
    items = [Question(line["prompt"], line.get("answer", "-"), "", match="last_number") for line in lines]
    results = evaluate(engine, items, pack=pack, **settings).items
    print(f"{pack}: {len(lines)} prompts", file=sys.stderr, flush=True)
    return {line["prompt"]: result for line, result in zip(lines, results, strict=True)}


def listed(lines: Sequence[Line], texts: Texts) -> list[dict[str, Any]]:
    return [texts[line["prompt"]] for line in lines]


def by_pair(lines: Sequence[Line]) -> dict[tuple[str, ...], list[Line]]:
    """The lines of each pair of domains, these in the order of their names."""
    found: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        found.setdefault(tuple(sorted(line["domains"])), []).append(line)
    return found


def outcomes(lines: Sequence[Line], texts: Texts, part: str) -> list[dict[str, Any]]:
    """One entry for each number, or for each part that can be scored."""
    found = []
    for line in lines:
        right = parts_right(line, texts[line["prompt"]]["text"])
        chosen = right if part == "parts" else right[: int("answer" in line)]
        found += [{"correct": value} for value in chosen]
    return found


def row(name: str, lines: Sequence[Line], by_use: dict[str, Texts], part: str) -> dict[str, Any]:
    """Right by use; the better pack is that of each pair of domains."""
    cells: dict[str, list[dict[str, Any]]] = {use: [] for use in ("better pack", *by_use)}
    for group in by_pair(lines).values():
        own = {use: outcomes(group, texts, part) for use, texts in by_use.items()}
        better = max(SINGLE, key=lambda use: sum(entry["correct"] for entry in own[use]))
        for use, entries in {**own, "better pack": own[better]}.items():
            cells[use] += entries
    found: dict[str, Any] = {"lines": name, "part": part, "n": len(cells["base"])}
    found["right"] = {use: sum(entry["correct"] for entry in entries) for use, entries in cells.items()}
    for use in ("named", "routed"):
        difference, ends = gap(cells[use], cells["better pack"])
        found[use] = {"interval": interval(cells[use]), "less_better": difference, "less_better_interval": ends}
    return found


def rows_of(lines: Sequence[Line], by_use: dict[str, Texts]) -> list[dict[str, Any]]:
    """By pair of domains, by when the prompts were written, and all."""
    rows = []
    for part in ("number", "parts"):
        kept = [line for line in lines if part == "parts" or "answer" in line]
        groups = {" + ".join(pair): own for pair, own in by_pair(kept).items()}
        groups |= {name: [line for line in kept if belongs(line)] for name, belongs in SETS.items()}
        rows += [row(name, own, by_use, part) for name, own in {**groups, "all": kept}.items()]
    return rows


def page(rows: Sequence[dict[str, Any]], routes: dict[str, int]) -> str:
    uses = ["base", "better pack", *TOGETHER, "named", "routed"]
    text = (
        f"Of {sum(routes.values())} prompts the router had {routes['parts']} answered in parts, {routes['together']} by "
        f"two packs together, {routes['one']} by one pack or none. Greedy answers of at most 64 tokens, in parts of\n64 "
        "each. The better pack is chosen afterwards, for each pair of domains. In brackets: 95% of resampled parts.\n"
    )

    def difference(cell: dict[str, Any]) -> str:
        low, high = cell["less_better_interval"]
        return f"{cell['less_better']:+.1%} [{low:+.1%}, {high:+.1%}]"

    for part, title in (("number", "The number right"), ("parts", "Parts right, of all that can be scored")):
        lines = [
            [r["lines"], r["n"], *(r["right"][use] for use in uses), difference(r["named"]), difference(r["routed"])]
            for r in rows
            if r["part"] == part
        ]
        head = ["prompts", "n", *uses, "named - better pack", "routed - better pack"]
        text += f"\n## {title}\n\n{table(head, lines)}"
    return text


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--packs", type=Path, default=Path("packs"))
    options.add_argument("--base", default="smollm2-135m")
    options.add_argument("--dtype", default="float32")
    chosen = options.parse_args()
    lines = scored_lines()
    try:
        with Engine.load(chosen.base, packs=chosen.packs, dtype=chosen.dtype) as engine:
            by_use = answers(engine, lines)
    except MbjaxError as error:
        options.exit(error.exit_status, f"{error}\n")
    kinds = [_kind(result["route"]) for result in by_use["routed"].values()]
    routes, rows = {kind: kinds.count(kind) for kind in ("parts", "together", "one")}, rows_of(lines, by_use)
    result = {"rows": rows, "routes": routes, "answers": by_use}
    publish(chosen, result, "Two packs for one prompt", page(rows, routes), "two_packs.md")


def _kind(route: Sequence[dict[str, Any]]) -> str:
    if len(route) < 2:
        return "one"
    return "parts" if route[0]["part"] else "together"


if __name__ == "__main__":
    main()
