"""Compiled programs kept on disk, so that only the first start on a machine compiles."""

import contextlib
from pathlib import Path

import jax

from mbjax.io.files import mbjax_home


def use_compile_cache() -> None:
    """Makes JAX keep every compiled program in `xla` under the mbjax home; call it before anything is compiled.

    A directory that the user configured for JAX stays. Where none can be made, programs are compiled anew each time.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    directory: Path = mbjax_home() / "xla"
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # small programs add up at start
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
