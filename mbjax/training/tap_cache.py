"""Tap states of the training rows, computed once and kept on disk: the understanding layers are frozen."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from mbjax.core.base import Base
from mbjax.core.config import ModelConfig
from mbjax.core.ops import Rows
from mbjax.core.train import tap_states
from mbjax.io.files import atomic_write, mbjax_home
from mbjax.training.rows import PackedRows

_ROWS, _MANY_ROWS = 2, 16  # of one pass, on CPUs and accelerators; always so many: bits may depend on nothing else

Progress = Callable[[int, int], None]


def tap_cache(
    base: Base, digest: str, config: ModelConfig, rows: PackedRows, progress: Progress | None = None
) -> np.ndarray:
    """bfloat16 [R, T, D], memory-mapped: the states of all rows at the tap.

    Kept in `$MBJAX_HOME/taps/` under a digest of base, tap, dtype and rows, so that a change of any of them never
    meets old states. Raises FailureError where the disk is full.
    """
    path = mbjax_home() / "taps" / f"{_key(base, digest, config, rows)}.bf16"
    shape = (*rows.tokens.shape, config.d_model)
    size = int(np.prod(shape)) * 2
    if not (path.is_file() and path.stat().st_size == size):
        _build(base, config, rows, path, shape, progress)
    return np.memmap(path, ml_dtypes.bfloat16, "r", shape=shape)


def _key(base: Base, digest: str, config: ModelConfig, rows: PackedRows) -> str:
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(base)})  # a quantised base has other states
    about = {"format": 2, "base": digest, "tap": config.tap, "dtypes": dtypes, "jax": jax.__version__}
    hashed = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for array in (rows.tokens, rows.positions, rows.segments):
        hashed.update(str(array.shape).encode())
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.hexdigest()


def _build(
    base: Base, config: ModelConfig, rows: PackedRows, path: Path, shape: tuple[int, ...], progress: Progress | None
) -> None:
    states = jax.jit(partial(tap_states, config=config))
    at_once = _ROWS if jax.default_backend() == "cpu" else _MANY_ROWS
    with atomic_write(path) as file:
        for start in range(0, shape[0], at_once):
            stop = min(start + at_once, shape[0])
            which = np.minimum(np.arange(start, start + at_once), shape[0] - 1)  # the last pass repeats a row
            parts = [jnp.asarray(x[which]) for x in (rows.tokens, rows.positions, rows.segments)]
            h = np.asarray(states(base, parts[0], Rows(parts[1], parts[2])))
            file.write(h[: stop - start].tobytes())
            if progress is not None:
                progress(stop, shape[0])
