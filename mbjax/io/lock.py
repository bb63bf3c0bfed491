"""One process at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mbjax.io.files import write_errors


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Waits until no other process holds the lock file, made if missing, and holds it during the block.

    The system frees it when a process dies, however that happens. Where there is no `fcntl` (Windows) nothing is
    held: what the block writes is checked and renamed anyway, the lock saves double work.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
