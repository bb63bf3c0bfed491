"""Compiling a training step that keeps in memory only what it says it keeps."""

import ctypes
import gc
import sys
from typing import Any

import jax

# XLA's CPU compiler drops the barriers of jax.checkpoint before its last search for common subexpressions, which then
# finds that what is to be made again is still there, and keeps all of it: twice the temporaries of a step.
_KEEP_REMATERIALISATION: dict[str, str | bool] = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def compile_lean(fn: Any, *args: Any, donate_argnums: int | tuple[int, ...] = ()) -> jax.stages.Compiled:
    """Compiles fn for arguments of these shapes, then hands the compiler's memory back to the system.

    Tracing and compiling a training step leave some 400 MB in the C library's pools (glibc keeps freed memory).
    """
    options = _KEEP_REMATERIALISATION if jax.default_backend() == "cpu" else None
    compiled = jax.jit(fn, donate_argnums=donate_argnums).lower(*args).compile(compiler_options=options)
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
    return compiled
