"""The compiled CPU kernels: finding, loading and registering them; everything works without them through the twins."""

import ctypes
import functools
import os
import sysconfig
from pathlib import Path

import jax

TARGETS = ("mbjax_linear", "mbjax_attend", "mbjax_layers", "mbjax_zeros")


@functools.cache
def _library() -> ctypes.CDLL | None:
    built = Path(__file__).parent / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    path = Path(os.environ.get("MBJAX_KERNELS", built))  # another build of them, such as one with sanitizers
    if not path.exists():
        return None
    try:
        library = ctypes.CDLL(str(path))
    except OSError:  # built for another machine: the twins run
        return None
    for name in TARGETS:
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
    library.mbjax_isa.restype = ctypes.c_char_p
    library.mbjax_select_isa.argtypes = [ctypes.c_char_p]
    return library


def available() -> bool:
    """Whether the compiled kernels are there. They are built when the package is installed with a C++ compiler."""
    return _library() is not None


def isa() -> str | None:
    """The instruction set in use: avx512vnni, avx2, neon or portable; None without compiled kernels."""
    library = _library()
    return library.mbjax_isa().decode() if library else None


def select_isa(name: str = "") -> bool:
    """Chooses an instruction set by name, or the best with no name; False where build or machine lacks it.

    For tests and measurements only; not to be called while a computation runs.
    """
    library = _library()
    return bool(library and library.mbjax_select_isa(name.encode()))
