"""The C library's allocator, told to hand large blocks back to the system as soon as they are free."""

import contextlib
import ctypes
import sys

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 4 * 2**20  # bytes: a prefill's temporaries are larger, those of a decoding step are not


def return_large_blocks() -> None:
    """Keeps glibc from raising its limit: it would hold on to twice a program's temporaries in each thread's arena."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, _LARGE)
