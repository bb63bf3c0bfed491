"""Measures a base on a file of questions, choices, completions or passages."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mbjax.engine.batch import answer_all
from mbjax.engine.engine import Engine, Selection
from mbjax.engine.eval_file import Choice, Completion, Item, Passage, Question
from mbjax.engine.match import METRICS, is_right
from mbjax.engine.scoring import Row, row_logprobs, windows
from mbjax.errors import InputError

ANSWER_TOKENS = 64
_WINDOW = 1024  # tokens of a passage read at once; it moves on by half

Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Results per line and in all; `summary` has `metric`, `value` and `n`."""

    items: list[dict[str, Any]]
    summary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The `eval` document of the command line."""
        return dataclasses.asdict(self)


def evaluate(
    engine: Engine,
    items: Sequence[Item],
    *,
    pack: str = "auto",
    raw: bool = False,
    progress: Progress | None = None,
) -> Evaluation:
    """Measures on the lines of a file, all of one form, see `eval_file.read_items`.

    - `{"prompt", "answer"}`: metric `exact_match`, the share of greedy answers of at most 64 tokens that equal the
      answer, both stripped. A field `match` asks for `last_number` or `parses` instead, see `match.is_right`.
    - `{"prompt", "choices", "label"}`: metric `acc`, the share where the right choice has the largest summed
      log-probability; `acc_norm` in the summary takes it per byte of the choice.
    - `{"prompt", "completion"}`: metric `bits_per_byte` over all completions, each read behind its prompt.
    - `{"text"}`: metric `bits_per_byte` over all texts, each read raw from the base's beginning token (or end token,
      where it has none) in windows of 1,024 tokens that move on by half.

    `pack` is as in `Engine.generate`. A prompt is one user turn through the chat template, unless `raw`.
    `progress(done, total)` counts sequences. Raises InputError for a prompt that the context does not hold.
    """
    use = engine.select(pack)
    questions = [item for item in items if isinstance(item, Question)]
    if questions:
        return _exact_match(engine, use, questions, raw, progress)
    choices = [item for item in items if isinstance(item, Choice)]
    if choices:
        return _multiple_choice(engine, use, choices, raw, progress)
    completions = [item for item in items if isinstance(item, Completion)]
    if completions:
        return _completion_bits(engine, use, completions, raw, progress)
    return _bits_per_byte(engine, use, [item for item in items if isinstance(item, Passage)], progress)


def _exact_match(
    engine: Engine, use: Selection, items: Sequence[Question], raw: bool, progress: Progress | None
) -> Evaluation:
    base, ends = engine.base, engine.base.tokenizer.eos_ids
    prompts = []
    for item in items:
        with _located(item.where):
            prompts.append(engine.encode(item.prompt, raw=raw))
    answers = answer_all(
        base.params, base.config, prompts, use.mix.packs, max_tokens=ANSWER_TOKENS, ends=ends, progress=progress
    )
    route, results = _route(use), []
    for item, prompt, ids in zip(items, prompts, answers, strict=True):
        text = base.tokenizer.decode(ids[: engine.context - len(prompt) + 1])
        correct = is_right(item.match, text, item.answer, item.prefix, cut_off=len(ids) >= ANSWER_TOKENS)
        results.append({"correct": correct, "text": text.strip(), "route": route})
    return Evaluation(results, _mean(METRICS[items[0].match], [result["correct"] for result in results]))


def _multiple_choice(
    engine: Engine, use: Selection, items: Sequence[Choice], raw: bool, progress: Progress | None
) -> Evaluation:
    base = engine.base
    rows: list[Row] = []
    for item in items:
        with _located(item.where):
            rows += [_choice_row(engine, item.prompt, choice, raw) for choice in item.choices]
    logprobs = row_logprobs(base.params, base.config, rows, use.mix.packs, progress)
    route, results, at = _route(use), [], 0
    for item in items:
        scores = logprobs[at : at + len(item.choices)]
        at += len(item.choices)
        per_byte = [score / len(choice.encode()) for score, choice in zip(scores, item.choices, strict=True)]
        best, best_norm = scores.index(max(scores)), per_byte.index(max(per_byte))
        correct = {"correct": best == item.label, "correct_norm": best_norm == item.label}
        results.append({**correct, "logprobs": scores, "route": route})
    acc_norm = _mean("acc_norm", [result["correct_norm"] for result in results])["value"]
    return Evaluation(results, {**_mean("acc", [result["correct"] for result in results]), "acc_norm": acc_norm})


def _completion_bits(
    engine: Engine, use: Selection, items: Sequence[Completion], raw: bool, progress: Progress | None
) -> Evaluation:
    base, rows = engine.base, []
    for item in items:
        with _located(item.where):
            rows.append(_choice_row(engine, item.prompt, item.completion, raw))
    logprobs = row_logprobs(base.params, base.config, rows, use.mix.packs, progress)
    route = _route(use)
    bits = [-logprob / math.log(2) for logprob in logprobs]
    sizes = [len(item.completion.encode()) for item in items]
    results = [{"bits": b, "bytes": n, "route": route} for b, n in zip(bits, sizes, strict=True)]
    return Evaluation(results, {"metric": "bits_per_byte", "value": sum(bits) / sum(sizes), "n": len(items)})


def _choice_row(engine: Engine, prompt: str, choice: str, raw: bool) -> Row:
    """Prompt and choice as one text, scored from the first token that the choice has a part in."""
    tokenizer = engine.base.tokenizer
    templated = tokenizer.template is not None and not raw
    text = prompt
    if tokenizer.template is not None and templated:
        text = tokenizer.template.render([{"role": "user", "content": prompt}])
    before = tokenizer.encode(text, add_bos=not templated)
    ids = tokenizer.encode(text + choice, add_bos=not templated)
    if len(ids) > engine.context:
        raise InputError(f"prompt and choice have {len(ids)} tokens and the context {engine.context}")
    shared = next((i for i, pair in enumerate(zip(before, ids, strict=False)) if pair[0] != pair[1]), len(before))
    return Row(ids, max(1, min(shared, len(ids) - 1)))


def _bits_per_byte(engine: Engine, use: Selection, items: Sequence[Passage], progress: Progress | None) -> Evaluation:
    base, window = engine.base, min(_WINDOW, engine.context)
    parts = [windows(_passage_ids(engine, item.text), window, max(1, window // 2)) for item in items]
    logprobs = iter(
        row_logprobs(base.params, base.config, [row for rows in parts for row in rows], use.mix.packs, progress)
    )
    route, results = _route(use), []
    for item, rows in zip(items, parts, strict=True):
        bits = -sum(next(logprobs) for _ in rows) / math.log(2)
        results.append({"bits": bits, "bytes": len(item.text.encode()), "route": route})
    value = sum(result["bits"] for result in results) / sum(result["bytes"] for result in results)
    return Evaluation(results, {"metric": "bits_per_byte", "value": value, "n": len(results)})


def _route(use: Selection) -> list[dict[str, Any]]:
    return [dataclasses.asdict(item) for item in use.route]


def _passage_ids(engine: Engine, text: str) -> list[int]:
    """The text after a token that begins it, so that its first token is scored, too."""
    tokenizer = engine.base.tokenizer
    start = tokenizer.bos_id if tokenizer.bos_id is not None else min(tokenizer.eos_ids, default=None)
    return ([] if start is None else [start]) + tokenizer.encode(text, add_bos=False, special=False)


@contextlib.contextmanager
def _located(where: str) -> Iterator[None]:
    """Puts file and line before an InputError of the block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _mean(metric: str, values: Sequence[bool]) -> dict[str, Any]:
    return {"metric": metric, "value": sum(values) / len(values), "n": len(values)}
