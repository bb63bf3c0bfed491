"""mbjax: a small frozen base understands, packs know, a router decides."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbjax.core.forward import forward
    from mbjax.core.sampling import Sampling
    from mbjax.engine.engine import Engine
    from mbjax.errors import FailureError, InputError, MbjaxError
    from mbjax.io.load import load_base
    from mbjax.io.pack_load import load_pack

__all__ = ["Engine", "FailureError", "InputError", "MbjaxError", "Sampling", "forward", "load_base", "load_pack"]

_HOMES = {
    "Engine": "mbjax.engine.engine",
    "FailureError": "mbjax.errors",
    "InputError": "mbjax.errors",
    "MbjaxError": "mbjax.errors",
    "Sampling": "mbjax.core.sampling",
    "forward": "mbjax.core.forward",
    "load_base": "mbjax.io.load",
    "load_pack": "mbjax.io.pack_load",
}


def __getattr__(name: str) -> Any:  # lazily, so that `mbjax --help` does not wait for JAX
    if name not in _HOMES:
        raise AttributeError(f"module 'mbjax' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
