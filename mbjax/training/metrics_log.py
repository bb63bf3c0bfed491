"""Where the figures of a run go: JSON lines always, TensorBoard where its writer is installed."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Self

from mbjax.io.files import write_errors

LOG, BOARD = "log.jsonl", "tensorboard"


class MetricsLog:
    """Appends to DIRECTORY/log.jsonl, line by line, and to DIRECTORY/tensorboard. Use as a context manager."""

    def __init__(self, directory: Path) -> None:
        """Raises FailureError where the directory cannot be written."""
        with write_errors(directory):
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / LOG).open("a", encoding="utf-8")
        self._path, self._board = directory / LOG, _board(directory / BOARD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()

    def write(self, event: Any) -> None:
        """A dataclass with `step`; what is None is left out. Raises FailureError for a full disk."""
        values = {key: value for key, value in dataclasses.asdict(event).items() if value is not None}
        with write_errors(self._path):
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()
        for key, value in values.items():
            if self._board is not None and key != "step":
                self._board.add_scalar(key, value, event.step)


def _board(directory: Path) -> Any:
    """A TensorBoard writer, or None where `tensorboardX` (the extra `plot`) is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory))
