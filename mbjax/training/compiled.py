"""Compiling a large program without keeping what the compiler used."""

import ctypes
import gc
import sys
from typing import Any

import jax


def compile_lean(fn: Any, *args: Any, donate_argnums: int | tuple[int, ...] = ()) -> jax.stages.Compiled:
    """Compiles fn for arguments of these shapes, then hands the compiler's memory back to the system.

    Tracing and compiling a training step leave some 400 MB in the C library's pools (glibc keeps freed memory).
    """
    compiled = jax.jit(fn, donate_argnums=donate_argnums).lower(*args).compile()
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
    return compiled
