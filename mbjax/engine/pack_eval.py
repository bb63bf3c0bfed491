"""What a pack is worth: base, pack and router on the same held-out set, task by task."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import Item, read_items
from mbjax.engine.evaluate import Evaluation, evaluate
from mbjax.io.load import LoadedBase
from mbjax.io.pack_dir import read_pack, update_pack
from mbjax.io.pack_load import binding
from mbjax.io.pack_manifest import Compatible
from mbjax.io.pack_scores import SCORES_HEADING, Score


def score_pack(
    engine: Engine, pack: str, path: Path, *, command: str, progress: Callable[[str, int, int], None]
) -> list[Score]:
    """Scores base, pack and the router's own choice on every task of a file of held-out lines, see
    `eval_file.read_items`. Without a router there is no routed score.

    `command` is what reproduces it; `progress(text, done, total)`. Raises InputError for wrong lines.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tasks: dict[str, list[Item]] = {}
    for item in read_items(path):
        tasks.setdefault(item.task or path.stem, []).append(item)
    return [_score(engine, pack, task, items, digest, command, progress) for task, items in tasks.items()]


def _score(
    engine: Engine,
    pack: str,
    task: str,
    items: list[Item],
    digest: str,
    command: str,
    progress: Callable[[str, int, int], None],
) -> Score:
    def measured(label: str, use: str, known: dict[tuple[str, ...], list[dict[str, Any]]]) -> Evaluation:
        told = partial(progress, f"{task}: {label}")
        return evaluate(engine, items, pack=use, known=known, progress=told)

    base, own = measured("base", "none", {}), measured(pack, pack, {})
    routed = None
    if engine.routing is not None:
        known = {(): base.items, (pack,): own.items}
        routed = measured("routed", "auto", known).summary["value"]
    values = base.summary["value"], own.summary["value"]
    return Score(task, own.summary["metric"], own.summary["n"], digest, *values, command, routed)


def put_scores(path: Path, scores: Sequence[Score], base: LoadedBase) -> None:
    """Writes scores that were measured on `base` into the pack at `path`.

    On the base it was trained on they replace those in `scores.json` and the last section of the card. Any other base
    is put down as compatible, with these scores.
    """
    stored, mine = read_pack(path), binding(base)
    if mine.digest == stored.manifest.base.digest:
        update_pack(path, scores=scores, card=card_with_scores(stored.card, scores))
        return
    others = [entry for entry in stored.manifest.compatible if entry.digest != mine.digest]
    measured = Compatible(mine.name, mine.digest, mine.tokenizer_digest, tuple(scores))
    update_pack(path, compatible=[*others, measured])


def card_with_scores(card: str, scores: Sequence[Score]) -> str:
    """The card with a table of these scores as its last section."""
    rows = [
        f"| {s.task} | {s.metric} | {s.n} | {s.base:.4f} | {s.pack:.4f} | {shown_score(s.routed)} | `{s.command}` |"
        for s in scores
    ]
    table = ["| task | metric | n | base | pack | routed | command |", "|---|---|---|---|---|---|---|", *rows]
    return "\n\n".join([card.split(SCORES_HEADING)[0].rstrip(), SCORES_HEADING, "\n".join(table)]) + "\n"


def shown_score(value: float | None) -> str:
    """Four digits, a dash where nothing was measured."""
    return "-" if value is None else f"{value:.4f}"
