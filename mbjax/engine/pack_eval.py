"""What a pack is worth: base, pack and router on the same held-out set, task by task."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import Item, read_items
from mbjax.engine.evaluate import Evaluation, evaluate
from mbjax.io.even_choice import even_choice
from mbjax.io.load import LoadedBase
from mbjax.io.pack_dir import read_pack, update_pack
from mbjax.io.pack_load import binding
from mbjax.io.pack_manifest import Compatible
from mbjax.io.pack_scores import SCORES_HEADING, Score


def score_pack(
    engine: Engine,
    pack: str,
    path: Path,
    *,
    command: str,
    progress: Callable[[str, int, int], None],
    limit: int | None = None,
) -> list[Score]:
    """Scores base, pack and the router's own choice on every task of a file of held-out lines, see
    `eval_file.read_items`, on an even choice of at most `limit` of each. Without a router there is no routed score.
    Choices are scored as `acc` and as `acc_mi`, see `evaluate`.

    `command` is what reproduces it; `progress(text, done, total)`. Raises InputError for wrong lines.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tasks = tasks_of(path, limit)
    scored = [_scores(engine, pack, task, items, digest, command, progress) for task, items in tasks.items()]
    return [score for own in scored for score in own]


def tasks_of(path: Path, limit: int | None = None) -> dict[str, list[Item]]:
    """The lines of a held-out file by their task; of each an even choice of at most `limit`."""
    tasks: dict[str, list[Item]] = {}
    for item in read_items(path):
        tasks.setdefault(item.task or path.stem, []).append(item)
    return {task: even_choice(items, limit) for task, items in tasks.items()}


def _scores(
    engine: Engine,
    pack: str,
    task: str,
    items: list[Item],
    digest: str,
    command: str,
    progress: Callable[[str, int, int], None],
) -> list[Score]:
    def measured(label: str, use: str, known: dict[tuple[str, ...], list[dict[str, Any]]]) -> Evaluation:
        told = partial(progress, f"{task}: {label}")
        return evaluate(engine, items, pack=use, known=known, progress=told)

    base, own = measured("base", "none", {}), measured(pack, pack, {})
    summaries = [base.summary, own.summary]
    if engine.routing is not None:
        summaries.append(measured("routed", "auto", {(): base.items, (pack,): own.items}).summary)
    scores = []
    for metric, key in {own.summary["metric"]: "value", "acc_mi": "acc_mi"}.items():
        if key in own.summary:
            of_base, of_pack, *routed = (summary[key] for summary in summaries)
            scores.append(Score(task, metric, own.summary["n"], digest, of_base, of_pack, command, *routed))
    return scores


def put_scores(path: Path, scores: Sequence[Score], base: LoadedBase) -> None:
    """Writes scores that were measured on `base` into the pack at `path`.

    They replace those of the same tasks and metrics and stand beside those of others: a pack may have several held-out
    sets. Those of the base it was trained on lie in `scores.json` and in the last section of the card. Any other base
    is put down as compatible, with its scores.
    """
    stored, mine = read_pack(path), binding(base)
    if mine.digest == stored.manifest.base.digest:
        merged = _merged(stored.scores, scores)
        update_pack(path, scores=merged, card=card_with_scores(stored.card, merged))
        return
    entries = stored.manifest.compatible
    known = next((entry.scores for entry in entries if entry.digest == mine.digest), ())
    measured = Compatible(mine.name, mine.digest, mine.tokenizer_digest, tuple(_merged(known, scores)))
    update_pack(path, compatible=[*(entry for entry in entries if entry.digest != mine.digest), measured])


def _merged(known: Sequence[Score], measured: Sequence[Score]) -> list[Score]:
    again = {(score.task, score.metric) for score in measured}
    return [*(score for score in known if (score.task, score.metric) not in again), *measured]


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
