"""sha256 of files, remembered by what the file system says of them, so that a start does not read a base twice."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from mbjax.errors import FailureError, InputError
from mbjax.io.files import atomic_write, mbjax_home

_SETTLED_NS = 2_000_000_000  # coarsest time stamp of a file system in use: a younger file may still change unseen
_MOST_ENTRIES = 1_000


def file_sha256(path: Path) -> str:
    """The sha256 of a file as 64 hex digits.

    A digest is taken from `digests.json` in MBJAX_HOME where path, size, times and inode are those it was computed
    for; else the file is read and the digest is written there. A memo that is damaged or cannot be written only
    costs time. Raises InputError where the file cannot be read.
    """
    try:
        path = path.resolve()
        key, stamp = str(path), _stamp(path)
        known = _read_memo().get(key)
        if isinstance(known, dict) and known.get("stamp") == stamp and _is_digest(known.get("sha256")):
            return known["sha256"]
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        unchanged = _stamp(path) == stamp
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror or error})") from error
    if unchanged and time.time_ns() - max(stamp[1:3]) > _SETTLED_NS:
        _remember(key, stamp, digest)
    return digest


def _stamp(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _memo_path() -> Path:
    return mbjax_home() / "digests.json"


def _read_memo() -> dict[str, Any]:
    try:
        memo = json.loads(_memo_path().read_bytes())
    except (OSError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}


def _remember(key: str, stamp: list[int], digest: str) -> None:
    memo = _read_memo()
    memo.pop(key, None)
    memo[key] = {"stamp": stamp, "sha256": digest}
    kept = dict(list(memo.items())[-_MOST_ENTRIES:])
    try:
        with atomic_write(_memo_path()) as file:
            file.write(json.dumps(kept, indent=1).encode())
    except FailureError:
        return  # a read-only or full home: the digest is right all the same
