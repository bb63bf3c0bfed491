"""One process at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mbjax.io.files import write_errors


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Waits until no other process holds the lock file, made if missing, and holds it during the block. Without
    `wait` the block gets False at once where another holds it.

    The system frees it when a process dies, however that happens. Where there is no `fcntl` (Windows) nothing is
    held: what the block writes is checked and renamed anyway, the lock saves double work.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
