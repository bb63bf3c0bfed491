"""The evaluation of a pack, `scores.json`: what it reaches on which held-out set, and how to measure it again."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from mbjax.io.strict_json import Fields, parse_object

FORMAT = 1
MAX_SCORES = 1_000
SCORES_HEADING = "## Scores"  # of the last section of a pack's card
_HUGE = 1e9  # larger than any score of any metric


@dataclasses.dataclass(frozen=True)
class Score:
    """One task. base, pack and routed are the metric's values of the base alone, of the pack forced on every prompt
    and of the router's own choice (None: not measured); `others` those of baselines and of wrong packs, by name."""

    task: str
    metric: str
    n: int  # held-out items
    split_digest: str  # sha256 of the held-out set
    base: float
    pack: float
    command: str  # that reproduces it
    routed: float | None = None
    others: dict[str, float] = dataclasses.field(default_factory=dict)


def score_json(score: Score) -> dict[str, Any]:
    """Every field by its name, values as floats."""
    return dataclasses.asdict(score) | {
        "base": float(score.base),
        "pack": float(score.pack),
        "routed": None if score.routed is None else float(score.routed),
        "others": {name: float(value) for name, value in score.others.items()},
    }


def read_score(fields: Fields) -> Score:
    """Raises InputError for a missing, unknown or absurd field."""
    names = {"task": 100, "metric": 100, "command": 1_000}
    texts = {name: fields.text(name, most) for name, most in names.items()}
    n, split = fields.integer("n", 1, 10**9), fields.digest("split_digest")
    base, pack = fields.number("base", -_HUGE, _HUGE), fields.number("pack", -_HUGE, _HUGE)
    routed = fields.number("routed", -_HUGE, _HUGE) if fields.has("routed") else None
    others = fields.object("others")
    values = {_other_name(others, key): others.number(key, -_HUGE, _HUGE) for key in others.keys(1_000)}
    fields.done()
    return Score(**texts, n=n, split_digest=split, base=base, pack=pack, routed=routed, others=values)


def _other_name(others: Fields, key: str) -> str:
    if not 1 <= len(key) <= 100 or not key.isprintable():
        others.refuse("a name", "must be printable text of 1 to 100 characters")
    return key


def scores_bytes(scores: Sequence[Score]) -> bytes:
    """The text of a `scores.json`."""
    document = {"format": FORMAT, "scores": [score_json(score) for score in scores]}
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def read_scores(data: bytes, where: str) -> tuple[Score, ...]:
    """The scores in a `scores.json` read into memory. Raises InputError naming `where` and the field."""
    fields = Fields(parse_object(data, where), where)
    fields.integer("format", FORMAT, FORMAT)
    scores = tuple(read_score(item) for item in fields.objects("scores", MAX_SCORES))
    fields.done()
    return scores
