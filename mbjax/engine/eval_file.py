"""The files that `eval` reads: JSON Lines, every line of one of four forms; `where` is its file and number."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from mbjax.engine.match import METRICS
from mbjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Question:
    """Right if the greedy answer agrees with `answer` by `match`, see `match.is_right`."""

    prompt: str
    answer: str
    where: str
    task: str = ""
    match: str = "exact"
    prefix: str = ""


@dataclasses.dataclass(frozen=True)
class Choice:
    """Right if `choices[label]` is the most probable continuation of the prompt."""

    prompt: str
    choices: tuple[str, ...]
    label: int
    where: str
    task: str = ""


@dataclasses.dataclass(frozen=True)
class Passage:
    """Text that is measured in bits per byte."""

    text: str
    where: str
    task: str = ""


@dataclasses.dataclass(frozen=True)
class Completion:
    """Text that is measured in bits per byte behind its prompt."""

    prompt: str
    completion: str
    where: str
    task: str = ""


Item = Question | Choice | Passage | Completion
_FORMS = '{"prompt", "answer"}, {"prompt", "choices", "label"}, {"prompt", "completion"} or {"text"}'
_KEYS = ("answer", "choices", "completion", "text")


def read_items(path: Path) -> list[Item]:
    """The lines of a file, all of one form; `task` may name what a line belongs to, further keys are ignored, and so
    are blank lines.

    Raises InputError naming the file and the number of the first wrong line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a JSON Lines file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; give a JSON Lines file") from error
    items: list[Item] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            item = _item(line, f"{path}:{number}")
            if items and _form(item) != _form(items[0]):
                raise InputError(f"{path}:{number}: is of another form than the lines before it; use one file per form")
            items.append(item)
    if not items:
        raise InputError(f"{path}: holds no line; each must be {_FORMS}")
    return items


def _form(item: Item) -> tuple[type[Item], str]:
    """Lines of one form are measured in one way."""
    return type(item), item.match if isinstance(item, Question) else ""


def _item(line: str, where: str) -> Item:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise InputError(f"{where}: is not JSON ({reason}); each line must be {_FORMS}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where}: is not a JSON object; each line must be {_FORMS}")
    forms = [key for key in _KEYS if key in value]
    if len(forms) != 1:
        found = " and ".join(f'"{form}"' for form in forms) or f"none of {', '.join(_KEYS)}"
        raise InputError(f"{where}: has {found}; each line must be {_FORMS}")
    task = _text(value, "task", where) if "task" in value else ""
    if forms == ["text"]:
        return Passage(_text(value, "text", where), where, task)
    prompt = _text(value, "prompt", where)
    if forms == ["answer"]:
        return _question(prompt, value, where, task)
    if forms == ["completion"]:
        return Completion(prompt, _text(value, "completion", where), where, task)
    return dataclasses.replace(_choice(prompt, value, where), task=task)


def _question(prompt: str, value: dict[str, Any], where: str, task: str) -> Question:
    match = value.get("match", "exact")
    if match not in METRICS:
        raise InputError(f'{where}: "match" must be one of {", ".join(METRICS)}')
    prefix = _text(value, "prefix", where) if "prefix" in value else ""
    return Question(prompt, _text(value, "answer", where), where, task, match, prefix)


def _choice(prompt: str, value: dict[str, Any], where: str) -> Choice:
    choices, label = value["choices"], value.get("label")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise InputError(f'{where}: "choices" must be a list of two or more texts, none empty')
    if type(label) is not int or not 0 <= label < len(choices):
        raise InputError(f'{where}: "label" must be the index of the right choice, 0 to {len(choices) - 1}')
    return Choice(prompt, tuple(choices), label, where)


def _text(value: dict[str, Any], key: str, where: str) -> str:
    text = value.get(key)
    if not isinstance(text, str) or not text:
        raise InputError(f'{where}: "{key}" must be text, and not empty')
    return text
