"""Questions that have few answers, by log-likelihood instead of by greedy answer: what a base knows but cannot say.

    python infer/by_likelihood.py FILE --task TASK [--packs packs] [--uses none,NAME] [--base NAME|PATH] [--dtype DTYPE]
        [--limit N] [--json] [--write]

FILE holds lines as for `mbjax pack eval`. Every answer that a line of TASK has is a choice of all of them; `--limit`
takes an even choice of so many lines. Right is the choice with the largest likelihood (`acc`), or the one that the
prompt makes most likelier than it is as an answer to an empty prompt (`acc_mi`). With `--write` the table goes to
docs/by_likelihood.md.
"""

from pathlib import Path
from typing import Any

import jax
from intervals import wilson
from report import parser, progress, publish, table

from mbjax.engine.engine import Engine
from mbjax.engine.eval_file import Choice, Item, Question
from mbjax.engine.evaluate import WAYS_TO_CHOOSE, evaluate
from mbjax.engine.pack_eval import tasks_of
from mbjax.errors import InputError, MbjaxError
from mbjax.io.even_choice import even_choice


def as_choices(items: list[Item], limit: int | None) -> list[Choice]:
    """The questions with the answers of all of them to choose from."""
    questions = [item for item in items if isinstance(item, Question)]
    answers = tuple(sorted({item.answer for item in questions}))
    return [
        Choice(item.prompt, answers, answers.index(item.answer), item.where, item.task)
        for item in even_choice(questions, limit)
    ]


def measure(file: Path, task: str, engine: Engine, uses: list[str], limit: int | None) -> list[dict[str, Any]]:
    """A row for each choice of packs. Raises InputError where the file has no such task with two answers or more."""
    choices = as_choices(tasks_of(file).get(task, []), limit)
    if not choices or len(choices[0].choices) < 2:
        raise InputError(f"{file}: has no questions of the task {task} with several answers; name another task")
    rows = []
    for use in uses:
        results = evaluate(engine, choices, pack=use, progress=progress(f"{task}, {use}:", 1000)).items
        row: dict[str, Any] = {"task": task, "packs": use, "n": len(choices), "choices": len(choices[0].choices)}
        row["device"] = jax.devices()[0].device_kind
        for name in ("acc", "acc_mi"):
            right = sum(result[WAYS_TO_CHOOSE[name]] for result in results)
            row[name] = {"value": right / len(choices), "interval": wilson(right, len(choices))}
        rows.append(row)
    return rows


def page(rows: list[dict[str, Any]]) -> str:
    def shown(value: dict[str, Any]) -> str:
        low, high = value["interval"]
        return f"{value['value']:.1%} [{low:.1%}, {high:.1%}]"

    lines = [
        [r["task"], r["packs"], r["n"], r["choices"], shown(r["acc"]), shown(r["acc_mi"]), r["device"]] for r in rows
    ]
    head = ["task", "packs", "n", "choices", "acc", "acc_mi", "measured on"]
    told = "Lines whose answer is the likeliest of all the task's answers, with 95% intervals (Wilson).\n"
    return f"{told}\n{table(head, lines)}"


def main() -> None:
    options = parser(__doc__)
    options.add_argument("file", type=Path)
    options.add_argument("--task", required=True)
    options.add_argument("--packs", type=Path, default=Path("packs"))
    options.add_argument("--uses", default="none", help="packs as for `mbjax eval --pack`, several joined by commas")
    options.add_argument("--base", default="smollm2-135m")
    options.add_argument("--dtype", default="auto")
    options.add_argument("--limit", type=int)
    chosen = options.parse_args()
    try:
        with Engine.load(chosen.base, packs=chosen.packs, dtype=chosen.dtype) as engine:
            rows = measure(chosen.file, chosen.task, engine, chosen.uses.split(","), chosen.limit)
    except MbjaxError as error:
        options.exit(error.exit_status, f"{error}\n")
    publish(chosen, {"rows": rows}, "Questions of few answers, by likelihood", page(rows), "by_likelihood.md")


if __name__ == "__main__":
    main()
