"""Sizes as people write them: `4GiB`, `800 MB`."""

import math
import re

from mbjax.errors import InputError

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_bytes(text: str, what: str = "budget") -> int:
    """Bytes of `4GiB` (2^30), `800MB` (10^6), `1.5 GiB` or a plain number; units in any case.

    Raises InputError, naming `what`, for anything else and for 0.
    """
    found = _SIZE.fullmatch(text)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if found is None or found[2].lower() not in units:
        raise InputError(f"{what} '{text}' is not a size; write for example 4GiB, 800MB or a number of bytes")
    size = math.floor(float(found[1]) * units[found[2].lower()]) if "." in found[1] else None
    size = int(found[1]) * units[found[2].lower()] if size is None else size
    if size < 1:
        raise InputError(f"{what} '{text}' is 0 bytes; it must be more")
    return size


def format_bytes(size: int) -> str:
    """Bytes in decimal units: `98.4 MB` (1 MB = 10^6 bytes)."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
