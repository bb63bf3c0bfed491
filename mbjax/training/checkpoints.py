"""Orbax checkpoints of a training run: written in the background, kept and pruned, restored to the same bits."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mbjax.errors import FailureError, InputError
from mbjax.io.files import atomic_write

_CONFIG = "config.json"
_REFUSALS = ("No space left", "File too large", "Disk quota exceeded", "Permission denied", "Read-only file system")


class Checkpoints:
    """The checkpoints of one run directory. Use as a context manager: leaving it waits for the last write."""

    def __init__(self, directory: Path, config: dict[str, Any], *, keep: int) -> None:
        """Raises InputError where the directory holds a run of another configuration, FailureError if unwritable."""
        self._directory = directory.absolute()
        self._bind(config)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(self._directory / "checkpoints", options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # what ended the run is what is to be told, not what a last write says
            with contextlib.suppress(Exception):
                self.wait()
                self._manager.close()
            return
        self.wait()
        self._manager.close()

    def wait(self) -> None:
        """Returns when the last checkpoint is on the disk. Raises FailureError where it could not be written."""
        with self._write_errors():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Saves a pytree of arrays, and what else the run must remember as JSON, in the background.

        Raises FailureError where this or the one before could not be written; those before stay as they are.
        """
        leaves = jax.tree.leaves(state)
        if jax.default_backend() == "cpu":  # the write goes on while steps donate the state; elsewhere it has its copy
            leaves = [jnp.copy(leaf) for leaf in leaves]
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves), progress=ocp.args.JsonSave(progress))
        with self._write_errors():
            self._manager.check_for_errors()
            self._manager.save(step, args=args)

    def restore(self, state: Any) -> tuple[Any, dict[str, Any]] | None:
        """The latest state, in the shape of the one given, and its JSON; None where there is none yet."""
        step = self._manager.latest_step()
        if step is None:
            return None
        leaves, treedef = jax.tree.flatten(state)
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves]
        args = ocp.args.Composite(state=ocp.args.StandardRestore(shapes), progress=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except (ValueError, OSError, KeyError) as error:
            raise InputError(
                f"{self._directory}: checkpoint {step} cannot be read ({_line(error)}); delete it"
            ) from None
        return jax.tree.unflatten(treedef, restored["state"]), restored["progress"]

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the writers raise whatever their libraries do
            if not is_write_error(error):
                raise
            kept = self._manager.latest_step()
            last = f"the last good one is of step {kept}" if kept is not None else "there is none yet"
            raise FailureError(
                f"{self._directory}: a checkpoint could not be written ({_line(error)}); {last}; free some space and start again"
            ) from error

    def _bind(self, config: dict[str, Any]) -> None:
        """The run's configuration stays with its checkpoints; another one must not continue from them."""
        if jax.process_index():  # the first process speaks for all
            return
        path = self._directory / _CONFIG
        text = json.dumps(config, indent=2, sort_keys=True)
        if path.exists():
            other = json.loads(path.read_text(encoding="utf-8"))
            mine = json.loads(text)
            differ = sorted(key for key in {*other, *mine} if other.get(key) != mine.get(key))
            if differ:
                raise InputError(
                    f"{self._directory}: holds checkpoints of another configuration (differs in {', '.join(differ)});"
                    " choose another --out, or delete it"
                )
            return
        with atomic_write(path) as file:
            file.write(text.encode())


def is_write_error(error: BaseException) -> bool:
    """Whether a file system refused: as OSError, or in the words of Orbax's writers, which wrap it in other types."""
    while error is not None:
        words = str(error)
        if isinstance(error, OSError) or any(word in words for word in _REFUSALS):
            return True
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]
    return False


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
