"""Orbax checkpoints of a pack's training: written in the background, kept and pruned, restored to the same bits."""

import json
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mbjax.errors import InputError
from mbjax.io.files import atomic_write

_CONFIG = "config.json"


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

    def __exit__(self, *_: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Saves a pytree of arrays, and what else the run must remember as JSON."""
        leaves = [jnp.copy(leaf) for leaf in jax.tree.leaves(state)]  # the write goes on while steps donate the state
        args = ocp.args.Composite(state=ocp.args.StandardSave(leaves), progress=ocp.args.JsonSave(progress))
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

    def _bind(self, config: dict[str, Any]) -> None:
        """The run's configuration stays with its checkpoints; another one must not continue from them."""
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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
