"""The C library's allocator, told to hand memory that is free back to the system."""

import contextlib
import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 4 * 2**20  # bytes: a prefill's temporaries are larger, those of a decoding step are not


def return_large_blocks() -> None:
    """Keeps glibc from raising its limit: it would hold on to twice a program's temporaries in each thread's arena."""
    _glibc("mallopt", _M_MMAP_THRESHOLD, _LARGE)


def return_free_memory() -> None:
    """Hands back what glibc holds in reserve: after compiling a program that is several times what is left of it."""
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            getattr(ctypes.CDLL("libc.so.6"), function)(*arguments)
