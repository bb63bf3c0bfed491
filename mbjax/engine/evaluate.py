"""Measures a base on a file of questions, choices, completions or passages."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mbjax.engine.batch import answer_all
from mbjax.engine.engine import Engine, Selection
from mbjax.engine.eval_file import Choice, Completion, Item, Passage, Question
from mbjax.engine.match import METRICS, is_right
from mbjax.engine.reply import BETWEEN_PARTS, RouteItem, in_turns
from mbjax.engine.route_all import route_all
from mbjax.engine.scoring import Row, row_logprobs, windows
from mbjax.errors import InputError
from mbjax.io.prompt import Prompt, raw_prompt

ANSWER_TOKENS = 64
WAYS_TO_CHOOSE = {"acc": "correct", "acc_norm": "correct_norm", "acc_mi": "correct_mi"}  # -> key of a line's result
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
    known: Mapping[tuple[str, ...], Sequence[dict[str, Any]]] | None = None,
    parts: bool = True,
    progress: Progress | None = None,
) -> Evaluation:
    """Measures on the lines of a file, all of one form, see `eval_file.read_items`.

    - `{"prompt", "answer"}`: metric `exact_match`, the share of greedy answers of at most 64 tokens that equal the
      answer, both stripped. A field `match` asks for `last_number` or `parses` instead, see `match.is_right`. The two
      parts of a prompt are answered one after the other, each in 64 tokens; without `parts`, by both packs together.
    - `{"prompt", "choices", "label"}`: metric `acc`, the share where the right choice has the largest summed
      log-probability; in the summary, `acc_norm` takes it per byte of the choice, and `acc_mi` takes off what the choice
      has as the answer to an empty prompt, by the same packs: what is left is what the prompt says about it.
    - `{"prompt", "completion"}`: metric `bits_per_byte` over all completions, each read behind its prompt.
    - `{"text"}`: metric `bits_per_byte` over all texts, each read raw from the base's beginning token (or end token,
      where it has none) in windows of 1,024 tokens that move on by half.

    `pack` is as in `Engine.generate`; `auto` chooses for each line by its own prompt or text. A prompt is one user
    turn through the chat template, unless `raw`. `known` holds results that were measured before, by the packs that
    were forced on all lines: where a route comes to the same they are taken from there.
    `progress(done, total)` counts sequences. Raises InputError for a prompt that the context does not hold.
    """
    routes = _routes(engine, items, pack, raw, parts and bool(items) and isinstance(items[0], Question), progress)
    results: list[dict[str, Any]] = [{} for _ in items]
    for turns, members in _by_turns(routes).items():
        found = [_of_turn(engine, items, routes, packs, members, raw, known or {}, progress) for packs in turns]
        for n, i in enumerate(members):
            results[i] = {**_one_after_another(items[i], [part[n] for part in found]), "route": _plain(routes[i])}
    return _evaluation(items, results)


def _routes(
    engine: Engine, items: Sequence[Item], pack: str, raw: bool, parts: bool, progress: Progress | None
) -> list[list[RouteItem]]:
    """The packs of each line, in the order in which their gates go to a program."""
    named = None
    if not engine.routes(pack):
        route = engine.select(pack).route
        named = [item.pack for item in route]
        if not (parts and engine.may_be_parts(named)):
            return [route] * len(items)
    found = route_all(engine, [_routed_by(engine, item, raw) for item in items], progress, parts=parts, named=named)
    return [sorted(engine.selection(route).route, key=lambda item: (item.part, item.pack)) for route in found]


Packs = tuple[str, ...]  # that answer together, in the order of their ids


def _by_turns(routes: Sequence[list[RouteItem]]) -> dict[tuple[Packs, ...], list[int]]:
    """The lines that the same packs are used on, in the same turns."""
    groups: dict[tuple[Packs, ...], list[int]] = {}
    for i, route in enumerate(routes):
        groups.setdefault(tuple(tuple(item.pack for item in turn) for turn in in_turns(route)), []).append(i)
    return groups


def _of_turn(
    engine: Engine,
    items: Sequence[Item],
    routes: Sequence[list[RouteItem]],
    packs: Packs,
    members: Sequence[int],
    raw: bool,
    known: Mapping[Packs, Sequence[dict[str, Any]]],
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """The results of some lines with packs that answer together there; from `known` where they are."""
    if packs in known:
        return [known[packs][i] for i in members]
    gates = [[item.gate for item in routes[i] if item.pack in packs] for i in members]
    use = engine.select(",".join(packs) or "none")
    return _measure(engine, use, [items[i] for i in members], np.asarray(gates, np.float32), raw, progress)


def _one_after_another(item: Item, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result of a line that several turns answered: their texts together, each stripped."""
    if len(parts) == 1 or not isinstance(item, Question):
        return parts[0]
    text = BETWEEN_PARTS.join(part["text"] for part in parts)
    return {"correct": is_right(item.match, text, item.answer, item.prefix), "text": text}


def _routed_by(engine: Engine, item: Item, raw: bool) -> Prompt:
    """What the router reads of a line."""
    with _located(item.where):
        if isinstance(item, Passage):
            ids = _passage_ids(engine, item.text)[: min(_WINDOW, engine.context)]
            return raw_prompt(ids)
        return engine.read(item.prompt, raw=raw)


def _measure(
    engine: Engine, use: Selection, items: Sequence[Item], gates: np.ndarray, raw: bool, progress: Progress | None
) -> list[dict[str, Any]]:
    """The result of each line with the packs of `use`, weighed by gates float32 [N, P]."""
    if questions := [item for item in items if isinstance(item, Question)]:
        return _answers(engine, use, questions, gates, raw, progress)
    if choices := [item for item in items if isinstance(item, Choice)]:
        return _choices(engine, use, choices, gates, raw, progress)
    if completions := [item for item in items if isinstance(item, Completion)]:
        return _completions(engine, use, completions, gates, raw, progress)
    return _passages(engine, use, [item for item in items if isinstance(item, Passage)], gates, progress)


def _evaluation(items: Sequence[Item], results: list[dict[str, Any]]) -> Evaluation:
    return Evaluation(results, summarise(items, results))


def summarise(items: Sequence[Item], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`metric`, `value` and `n` of the results of lines of one form, as in `Evaluation`."""
    first = items[0]
    if isinstance(first, Question):
        return _mean(METRICS[first.match], [result["correct"] for result in results])
    if isinstance(first, Choice):
        # results that were kept before there was `acc_mi` lack it
        ways = {name: key for name, key in WAYS_TO_CHOOSE.items() if all(key in result for result in results)}
        means = {name: _mean(name, [result[key] for result in results]) for name, key in ways.items()}
        return {**means["acc"], **{name: mean["value"] for name, mean in means.items() if name != "acc"}}
    value = sum(result["bits"] for result in results) / sum(result["bytes"] for result in results)
    return {"metric": "bits_per_byte", "value": value, "n": len(results)}


def _answers(
    engine: Engine, use: Selection, items: Sequence[Question], gates: np.ndarray, raw: bool, progress: Progress | None
) -> list[dict[str, Any]]:
    base, ends = engine.base, engine.base.tokenizer.eos_ids
    prompts = []
    for item in items:
        with _located(item.where):
            prompts.append(engine.encode(item.prompt, raw=raw))
    answers = answer_all(
        base.params,
        base.config,
        prompts,
        use.mix.packs,
        gates=gates,
        max_tokens=ANSWER_TOKENS,
        ends=ends,
        programs=engine.batch_programs,
        progress=progress,
    )
    results = []
    for item, prompt, ids in zip(items, prompts, answers, strict=True):
        text = base.tokenizer.decode(ids[: engine.context - len(prompt) + 1])
        correct = is_right(item.match, text, item.answer, item.prefix, cut_off=len(ids) >= ANSWER_TOKENS)
        results.append({"correct": correct, "text": text.strip()})
    return results


def _choices(
    engine: Engine, use: Selection, items: Sequence[Choice], gates: np.ndarray, raw: bool, progress: Progress | None
) -> list[dict[str, Any]]:
    base = engine.base
    rows: list[Row] = []
    for item in items:
        with _located(item.where):
            rows += [_choice_row(engine, item.prompt, choice, raw) for choice in item.choices]
            rows += [_alone_row(engine, choice, raw) for choice in item.choices]
    per_row = np.repeat(gates, [2 * len(item.choices) for item in items], axis=0)
    logprobs = row_logprobs(base.params, base.config, rows, use.mix.packs, progress, per_row)
    results, at = [], 0
    for item in items:
        n = len(item.choices)
        scores, alone = logprobs[at : at + n], logprobs[at + n : at + 2 * n]
        at += 2 * n
        per_byte = [score / len(choice.encode()) for score, choice in zip(scores, item.choices, strict=True)]
        gained = [score - prior for score, prior in zip(scores, alone, strict=True)]
        ways = {"correct": scores, "correct_norm": per_byte, "correct_mi": gained}
        correct = {name: values.index(max(values)) == item.label for name, values in ways.items()}
        results.append({**correct, "logprobs": scores, "alone": alone})
    return results


def _completions(
    engine: Engine, use: Selection, items: Sequence[Completion], gates: np.ndarray, raw: bool, progress: Progress | None
) -> list[dict[str, Any]]:
    base, rows = engine.base, []
    for item in items:
        with _located(item.where):
            rows.append(_choice_row(engine, item.prompt, item.completion, raw))
    logprobs = row_logprobs(base.params, base.config, rows, use.mix.packs, progress, gates)
    sizes = [len(item.completion.encode()) for item in items]
    return [{"bits": -log / math.log(2), "bytes": n} for log, n in zip(logprobs, sizes, strict=True)]


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


def _alone_row(engine: Engine, choice: str, raw: bool) -> Row:
    """The choice as the answer to an empty prompt; as a text of its own where there is no template."""
    if raw or engine.base.tokenizer.template is None:
        return Row(_passage_ids(engine, choice), 1)
    return _choice_row(engine, "", choice, raw)


def _passages(
    engine: Engine, use: Selection, items: Sequence[Passage], gates: np.ndarray, progress: Progress | None
) -> list[dict[str, Any]]:
    base, window = engine.base, min(_WINDOW, engine.context)
    parts = [windows(_passage_ids(engine, item.text), window, max(1, window // 2)) for item in items]
    per_row = np.repeat(gates, [len(rows) for rows in parts], axis=0)
    flat = [row for rows in parts for row in rows]
    logprobs = iter(row_logprobs(base.params, base.config, flat, use.mix.packs, progress, per_row))
    bits = [-sum(next(logprobs) for _ in rows) / math.log(2) for rows in parts]
    return [{"bits": b, "bytes": len(item.text.encode())} for b, item in zip(bits, items, strict=True)]


def _plain(route: Sequence[RouteItem]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(item) for item in route]


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
