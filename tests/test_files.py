"""Atomic writes leave the old or the new, never a part; the home directory follows the environment."""

import errno
import os
from pathlib import Path

import pytest

from mbjax.errors import FailureError
from mbjax.io import files


def test_atomic_write_replaces_and_leaves_no_other_name(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.bin"
    for content in (b"old", b"new"):
        with files.atomic_write(target) as file:
            file.write(content)
    assert target.read_bytes() == b"new"
    assert [p.name for p in target.parent.iterdir()] == ["a.bin"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyError), files.atomic_write(target) as file:
        file.write(b"half")
        raise KeyError
    assert target.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(FailureError, match="disk is full") as caught, files.atomic_write(tmp_path / "a.bin") as file:
        file.write(b"x")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_written_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        with files.atomic_write(tmp_path / "a.bin") as file:
            file.write(b"x")
    finally:
        os.umask(old)
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o644


def test_new_directory_replaces_a_full_one(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with files.new_directory(tmp_path / "entry") as folder:
            (folder / name).write_text(name)
    assert [p.name for p in (tmp_path / "entry").iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["entry"]


def test_new_directory_replaces_a_file_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "entry").write_text("in the way")
    with files.new_directory(tmp_path / "entry") as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / "entry" / "a").is_file()


def test_a_failed_directory_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), files.new_directory(tmp_path / "entry") as folder:
        (folder / "a").write_text("a")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_home_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBJAX_HOME", str(tmp_path / "home"))
    assert files.mbjax_home() == tmp_path / "home"
    monkeypatch.delenv("MBJAX_HOME")
    monkeypatch.setattr(files.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.mbjax_home() == tmp_path / "xdg" / "mbjax"
