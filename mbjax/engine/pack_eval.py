"""What a pack is worth: base and pack on the same held-out set, task by task."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import Item, read_items
from mbjax.engine.evaluate import evaluate
from mbjax.io.pack_dir import read_pack, update_pack
from mbjax.io.pack_scores import Score

_HEADING = "## Scores"


def score_pack(
    engine: Engine, pack: str, path: Path, *, command: str, progress: Callable[[str, int, int], None]
) -> list[Score]:
    """Scores base and pack on every task of a file of held-out lines, see `eval_file.read_items`.

    `command` is what reproduces it; `progress(text, done, total)`. Raises InputError for wrong lines.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    tasks: dict[str, list[Item]] = {}
    for item in read_items(path):
        tasks.setdefault(item.task or path.stem, []).append(item)
    scores = []
    for task, items in tasks.items():
        values = []
        for use in ("none", pack):
            label = f"{task}: {'base' if use == 'none' else use}"
            result = evaluate(engine, items, pack=use, progress=lambda d, n, label=label: progress(label, d, n))
            values.append(result.summary)
        base, own = values
        scores.append(Score(task, own["metric"], own["n"], digest, base["value"], own["value"], command))
    return scores


def put_scores(path: Path, scores: Sequence[Score]) -> None:
    """Replaces the scores of the pack at `path`, in `scores.json` and as the last section of its card."""
    update_pack(path, scores=scores, card=card_with_scores(read_pack(path).card, scores))


def card_with_scores(card: str, scores: Sequence[Score]) -> str:
    """The card with a table of these scores as its last section."""
    rows = [f"| {s.task} | {s.metric} | {s.n} | {s.base:.4f} | {s.pack:.4f} | `{s.command}` |" for s in scores]
    table = ["| task | metric | n | base | pack | command |", "|---|---|---|---|---|---|", *rows]
    return "\n\n".join([card.split(_HEADING)[0].rstrip(), _HEADING, "\n".join(table)]) + "\n"
