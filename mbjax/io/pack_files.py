"""The files of a pack as bytes: read once through one open directory, and replaced all at once.

A directory that is replaced while it is read shows either all of the old files or all of the new ones.
"""

import contextlib
import ctypes
import hashlib
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from mbjax.errors import FailureError, InputError
from mbjax.io.files import replace_dir, sync_directory, write_errors
from mbjax.io.pack_manifest import CARD, MANIFEST, MAX_MANIFEST, SCORES, SIGNATURE, TENSORS, FileEntry, Manifest
from mbjax.io.pack_manifest_reader import read_manifest
from mbjax.io.strict_json import refuse, shown

T = TypeVar("T")
_PIECE = 1 << 20  # bytes that are read, then hashed while the next are read
_MOST_AHEAD = 64 << 20  # bytes that are asked for before it is known that the file is as long as it should be
_TRIES = 5  # readings of a directory that another process keeps replacing
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux's renameat2, RENAME_SWAP of macOS's renamex_np
_AT_FDCWD = -100


class PackFolder:
    """An open pack directory. Its files are reached through the directory's handle, not by path: whatever takes its
    name meanwhile, they belong together."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        try:
            if os.open in os.supports_dir_fd:
                self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
            elif not path.is_dir():
                raise NotADirectoryError
        except FileNotFoundError:
            refuse(str(path), "no such directory")
        except NotADirectoryError:
            refuse(str(path), "is not a directory")
        except (OSError, ValueError) as error:
            refuse(str(path), f"cannot be read: {getattr(error, 'strerror', None) or 'not a path'}")

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)

    def replaced(self) -> bool:
        """Whether the path now names another directory than the one that is open."""
        try:
            return self._handle is not None and not os.path.samestat(os.stat(self.path), os.fstat(self._handle))
        except OSError:
            return False

    def names(self) -> list[str]:
        return sorted(os.listdir(self.path if self._handle is None else self._handle))

    def manifest(self) -> Manifest:
        """Raises InputError as `read_manifest` does."""
        data = self.read(MANIFEST, lambda size: size <= MAX_MANIFEST or f"has {size} bytes, at most {MAX_MANIFEST}")
        return read_manifest(data, str(self.path / MANIFEST))

    def announce(self, name: str) -> None:
        """Tells the system that a file is about to be read, so that the disk works while other things are looked at. In
        pieces: Linux takes no more than about a megabyte from one call."""
        if hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # reading says what is wrong with it
                handle = self._open(name)
                try:
                    for at in range(0, min(os.fstat(handle).st_size, _MOST_AHEAD), _PIECE):
                        os.posix_fadvise(handle, at, _PIECE, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(handle)

    def listed(
        self, name: str, entry: FileEntry, begun: Callable[[memoryview], None] | None = None
    ) -> bytes | memoryview:
        """A file that the manifest lists; its size is checked before it is read, its sha256 before it is used.

        `begun` may look at the memory of a large one when its first piece has come, while the disk works on; nothing of
        that may be used until this returns.
        """

        def right_size(size: int) -> bool | str:
            return size == entry.bytes or f"has {size} bytes, the manifest says {entry.bytes}: incomplete or changed"

        data, sha256 = self._read(name, right_size, begun)
        if sha256 != entry.sha256:
            refuse(str(self.path / name), "its sha256 is not the manifest's: the file was damaged or changed")
        return data

    def read(self, name: str, right_size: Callable[[int], bool | str]) -> bytes:
        """All of a plain file, read once into private memory, if `right_size` does not object to its bytes."""
        return bytes(self._read(name, right_size)[0])

    def _open(self, name: str) -> int:
        # without O_NONBLOCK the opening of a pipe in a file's place would wait for ever
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        return os.open(self.path / name if self._handle is None else name, flags, dir_fd=self._handle)

    def _read(
        self, name: str, right_size: Callable[[int], bool | str], begun: Callable[[memoryview], None] | None = None
    ) -> tuple[bytes | memoryview, str]:
        """The same with its sha256."""
        where = str(self.path / name)
        try:
            handle = self._open(name)
            with os.fdopen(handle, "rb") as file:
                status = os.fstat(handle)
                if not stat.S_ISREG(status.st_mode):
                    refuse(where, "is not a plain file")
                if (objection := right_size(status.st_size)) is not True:
                    refuse(where, str(objection))
                data, sha256 = _hashed(file, status.st_size, begun)
                if len(data) != status.st_size or file.read(1):
                    refuse(where, "changed while it was read; try again")
                return data, sha256
        except FileNotFoundError:
            refuse(where, "is missing")
        except OSError as error:
            refuse(where, f"cannot be read: {error.strerror}")
        except MemoryError:
            raise FailureError(f"{where}: does not fit into memory") from None


def _hashed(file: BinaryIO, size: int, begun: Callable[[memoryview], None] | None) -> tuple[bytes | memoryview, str]:
    """At most `size` bytes of a file, and their sha256; a second thread hashes what has come while more is read."""
    if size <= _PIECE:
        data = file.read(size)
        return data, hashlib.sha256(data).hexdigest()
    data, at, digest = np.zeros(size, np.uint8).data, 0, hashlib.sha256()  # numpy takes huge pages
    with ThreadPoolExecutor(1, "mbjax-sha256") as hasher:
        while n := file.readinto(data[at : at + _PIECE]):  # pyright: ignore[reportAttributeAccessIssue]
            hasher.submit(digest.update, data[at : at + n])
            at += n
            if begun is not None and at == n:
                begun(data)
    return data if at == size else data[:at], digest.hexdigest()


def with_folder(path: Path, read: Callable[[PackFolder], T]) -> T:
    """What `read` makes of the pack directory; tried again where the directory was replaced under its hands."""
    for attempt in range(_TRIES):
        folder = PackFolder(path)
        try:
            return read(folder)
        except InputError:
            if attempt + 1 == _TRIES or not folder.replaced():
                raise
        finally:
            folder.close()
    raise AssertionError("unreachable")


def replaced_pack(path: Path) -> contextlib.AbstractContextManager[Path]:
    """`replaced_folder` for a pack."""
    path = Path(os.path.realpath(path))
    own = {MANIFEST, TENSORS, SCORES, CARD, SIGNATURE}
    with contextlib.suppress(InputError):  # a damaged pack may be replaced, too
        own |= set(with_folder(path, PackFolder.manifest).files)
    return replaced_folder(path, MANIFEST, own, "pack")


@contextlib.contextmanager
def replaced_folder(path: Path, manifest: str, own: set[str], kind: str) -> Iterator[Path]:
    """A temporary directory beside `path` that takes its place once the block ends well; else nothing changes.

    An old one is exchanged for the new one in one step where the system can (Linux, macOS), so that at every moment
    one of the two is there. Raises InputError where `path` holds anything but a `kind` with its `manifest` and files
    named in `own`, FailureError where the system refuses.
    """
    path = Path(os.path.realpath(path))
    _refuse_strangers(path, manifest, own, kind)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
        temporary.mkdir()
        try:
            yield temporary
            sync_directory(temporary)
            _put_in_place(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # what is left there: an unfinished pack, or the old one


def write_file(path: Path, data: bytes) -> None:
    """Writes and syncs a new file. Raises OSError."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _refuse_strangers(path: Path, manifest: str, own: set[str], kind: str) -> None:
    """Replacing a directory deletes what was in it: only its own files may go."""
    try:
        names = set(os.listdir(path))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        refuse(str(path), f"is a file; give the name of a directory for the {kind}")
    except OSError as error:
        refuse(str(path), f"cannot be read: {error.strerror}")
    if names and manifest not in names:
        refuse(str(path), f"exists and is not a {kind}; give another name or empty the directory")
    if strangers := sorted(names - own):
        refuse(str(path), f"holds {shown(strangers[0])}, which is no file of the {kind} there; move it away first")


def _put_in_place(temporary: Path, path: Path) -> None:
    if path.exists():
        if not _exchange(temporary, path):
            replace_dir(temporary, path)
    else:
        os.rename(temporary, path)
    sync_directory(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False where system or file system cannot."""
    try:
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return libc.renamex_np(os.fsencode(one), os.fsencode(other), _EXCHANGE) == 0
        return libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0
    except (AttributeError, OSError, TypeError):
        return False
