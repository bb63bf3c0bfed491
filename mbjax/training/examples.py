"""Training examples: read from JSONL or an HF-style directory, put through the chat template, turned into tokens."""

import dataclasses
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from mbjax.errors import InputError
from mbjax.io.tokenizer import Tokenizer

FORMS = {"prompt": ("prompt", "answer"), "messages": ("messages",), "text": ("text",)}


@dataclasses.dataclass(frozen=True)
class Example:
    """Token ids, and which of them are to be predicted: answers, never prompts. `line` is where it was read.

    `wrong` are the ids of the same prompt with each wrong choice, without an end.
    """

    ids: tuple[int, ...]
    scored: tuple[bool, ...]
    line: int
    wrong: tuple[tuple[int, ...], ...] = ()


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, record) of a JSONL file, or of a data set directory as the hub has them: every `*.jsonl` and
    `*.parquet` in it, or the `*.arrow` files that `datasets` saves.

    Raises InputError naming file and line for what is no JSON object, and where there is nothing at all.
    """
    if not path.is_dir():
        yield from _jsonl(path)
        return
    files = sorted(p for p in path.rglob("*") if p.suffix in (".jsonl", ".parquet", ".arrow"))
    if not files:
        raise InputError(f"{path}: no .jsonl, .parquet or .arrow file in this directory")
    for file in files:
        yield from _jsonl(file) if file.suffix == ".jsonl" else _table(file)


def _jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    empty = True
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                empty = False
                yield number, _record(path, number, line)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file: {error}") from None
    if empty:
        raise InputError(f"{path}: the file is empty; give one JSON object per line")


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: not JSON: {error.msg}") from None
    if not isinstance(record, dict):
        raise InputError(f"{path}, line {number}: not a JSON object")
    return record


def _table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError:
        raise InputError(f"{path}: reading this needs pyarrow; pip install 'mbjax[data]'") from None
    try:
        if path.suffix == ".parquet":
            table = parquet.read_table(path)
        else:
            with pyarrow.memory_map(str(path)) as file:
                table = ipc.open_stream(file).read_all()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable {path.suffix[1:]} file: {str(error).splitlines()[0]}") from None
    for number, record in enumerate(table.to_pylist(), 1):
        yield number, {key: value for key, value in record.items() if value is not None}


def read_examples(path: Path, tokenizer: Tokenizer, max_tokens: int) -> list[Example]:
    """All examples of a file or directory, of one form: `prompt`/`answer`, `messages`, or `text`.

    In place of `answer` there may be `choices` and `label`, the index of the right one: the answer is learned, and
    to be more likely than the others.

    Raises InputError with file and line for a missing or empty field, for mixed forms, and for an example of more
    than `max_tokens` tokens (text is cut into pieces of that length instead).
    """
    examples, form = [], None
    for line, record in read_records(path):
        where = f"{path}, line {line}"
        own = _form(record, where)
        form = form or own
        if own != form:
            raise InputError(f"{where}: this line is of the form '{own}', those before it '{form}'; use one form")
        if "choices" in record and form == "prompt":
            found = [_choice_example(record, tokenizer, where, line)]
        else:
            tokens = _tokens(record, form, tokenizer, where, max_tokens)
            found = [Example(tuple(ids), tuple(scored), line) for ids, scored in tokens]
        for example in found:
            longest = max(map(len, (example.ids, *example.wrong)))
            if longest > max_tokens:
                raise InputError(f"{where}: {longest} tokens, more than the {max_tokens} of the context")
        examples += found
    return examples


def _choice_example(record: dict[str, Any], tokenizer: Tokenizer, where: str, line: int) -> Example:
    prompt, choices, label = record["prompt"], record["choices"], record.get("label")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise InputError(f"{where}: 'choices' must be a list of two or more texts, none empty")
    if type(label) is not int or not 0 <= label < len(choices):
        raise InputError(f"{where}: 'label' must be the index of the right choice, 0 to {len(choices) - 1}")
    turn = [{"role": "user", "content": _string(prompt, "prompt", where)}]
    ids, scored = _answered(turn, choices[label], tokenizer)
    asked = ids[: scored.index(True)]
    wrong = [(*asked, *tokenizer.encode(choice, add_bos=False)) for i, choice in enumerate(choices) if i != label]
    return Example(tuple(ids), tuple(scored), line, tuple(wrong))


def _form(record: dict[str, Any], where: str) -> str:
    for form, fields in FORMS.items():
        if form in record:
            if form == "prompt" and "choices" in record:
                fields = ("prompt",)
            missing = [field for field in fields if not record.get(field)]
            if missing:
                raise InputError(f"{where}: field '{missing[0]}' is missing or empty")
            return form
    raise InputError(f"{where}: no field 'prompt' (with 'answer' or 'choices'), 'messages' or 'text'")


def _tokens(
    record: dict[str, Any], form: str, tokenizer: Tokenizer, where: str, max_tokens: int
) -> Iterator[tuple[list[int], list[bool]]]:
    if form == "text":
        ids = [*tokenizer.encode(_string(record["text"], "text", where)), end_of_turn(tokenizer)]
        for at in range(0, len(ids), max_tokens):
            piece = ids[at : at + max_tokens]
            yield piece, [True] * len(piece)
    elif form == "prompt":
        turn = [{"role": "user", "content": _string(record["prompt"], "prompt", where)}]
        yield _answered(turn, _string(record["answer"], "answer", where), tokenizer)
    else:
        yield _conversation(record["messages"], tokenizer, where)


@lru_cache(maxsize=8)
def end_of_turn(tokenizer: Tokenizer) -> int:
    """The end token that the chat template itself puts behind an answer; the lowest where it puts none."""
    if tokenizer.template is not None:
        answer = "The end."
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
        rendered = tokenizer.template.render(turns, add_generation_prompt=False)
        behind = tokenizer.encode(rendered[rendered.rindex(answer) + len(answer) :], add_bos=False)
        for token in behind:
            if token in tokenizer.eos_ids:
                return token
    if not tokenizer.eos_ids:
        raise InputError("the base's tokenizer names no end token; answers could not be told to end")
    return min(tokenizer.eos_ids)


def _string(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: field '{field}' is not a string")
    return value


def _answered(turns: list[dict[str, str]], answer: str, tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """The turns as a prompt, then the scored answer with its end-of-turn token."""
    if tokenizer.template is None:
        prompt = tokenizer.encode("\n".join(turn["content"] for turn in turns) + "\n")
    else:
        prompt = tokenizer.encode(tokenizer.template.render(turns), add_bos=False)
    reply = [*tokenizer.encode(answer, add_bos=False), end_of_turn(tokenizer)]
    return prompt + reply, [False] * len(prompt) + [True] * len(reply)


def _conversation(messages: Any, tokenizer: Tokenizer, where: str) -> tuple[list[int], list[bool]]:
    """A whole conversation; every assistant turn is scored, each behind the template's own rendering of what precedes."""
    well_formed = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not well_formed or not any(m["role"] == "assistant" for m in messages):
        raise InputError(f"{where}: 'messages' must be a list of role and content, with an assistant turn")
    ids: list[int] = []
    scored: list[bool] = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt, marks = _answered(messages[:i], message["content"], tokenizer)
            if prompt[: len(ids)] != ids:  # the template rewrites earlier turns: score the last answer only
                ids, scored = [], []
            ids, scored = prompt, scored + marks[len(scored) :]
    return ids, scored
