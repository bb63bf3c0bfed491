"""What a pack is worth: base and pack on the same held-out set, task by task."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import Item, read_items
from mbjax.engine.evaluate import evaluate
from mbjax.io.load import LoadedBase
from mbjax.io.pack_dir import read_pack, update_pack
from mbjax.io.pack_load import binding
from mbjax.io.pack_manifest import Compatible
from mbjax.io.pack_scores import SCORES_HEADING, Score


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
    rows = [f"| {s.task} | {s.metric} | {s.n} | {s.base:.4f} | {s.pack:.4f} | `{s.command}` |" for s in scores]
    table = ["| task | metric | n | base | pack | command |", "|---|---|---|---|---|---|", *rows]
    return "\n\n".join([card.split(SCORES_HEADING)[0].rstrip(), SCORES_HEADING, "\n".join(table)]) + "\n"
