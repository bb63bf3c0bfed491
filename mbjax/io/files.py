"""Files that are either wholly there or not there: atomic writes, and the directory that mbjax keeps its own in."""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mbjax.errors import FailureError


def mbjax_home() -> Path:
    """The directory for everything mbjax keeps: MBJAX_HOME, else `mbjax` in the platform's cache directory.

    It is not created here. Raises nothing.
    """
    chosen = os.environ.get("MBJAX_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "mbjax"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mbjax"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mbjax"


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns an OSError inside the block into a FailureError of one line that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FailureError(
                f"{path}: the disk is full; free some space or set MBJAX_HOME to another disk"
            ) from error
        raise FailureError(f"{path}: cannot write ({error.strerror or error})") from error


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` once the block ends well; else nothing of it stays.

    The bytes go to a temporary name in the same directory, are synced to the disk, and the name is then moved over
    whatever `path` was. Parent directories are made. Raises FailureError where the system refuses (full disk, no
    permission).
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private; a cache may be shared
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        sync_directory(path.parent)


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """An empty temporary directory beside `path` that takes its name once the block ends well; else it is removed.

    Raises FailureError where the system refuses.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            yield temporary
            os.chmod(temporary, 0o777 & ~_umask())
            replace_dir(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def replace_dir(temporary: Path, path: Path) -> None:
    """Moves the finished directory `temporary` to `path` on the same file system, replacing what is there.

    Every file is synced first, so that the new name never shows half-written content. A reader may for an instant
    find no `path`; it never finds a mixture. Raises OSError.
    """
    for folder, _, names in os.walk(temporary):
        for name in names:
            _sync_file(Path(folder, name))
        sync_directory(Path(folder))
    for _ in range(100):  # another process may put its own there between the two renames
        try:
            os.rename(temporary, path)
            sync_directory(path.parent)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            _move_away(path)
    raise OSError(errno.EBUSY, "other processes keep replacing it", str(path))


def _move_away(path: Path) -> None:
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside / path.name)
    shutil.rmtree(aside, ignore_errors=True)


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable, where the system can do that."""
    if os.name == "posix":
        _sync_file(path)


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask
