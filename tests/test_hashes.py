"""File digests are right, remembered, and never remembered for other bytes."""

import hashlib
import os
from pathlib import Path

import pytest

from mbjax.errors import InputError
from mbjax.io import hashes

OLD_NS = 1_600_000_000 * 10**9


@pytest.fixture(autouse=True)
def settled(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "_SETTLED_NS", -(10**12))  # the test cannot wait until its files are old


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    os.utime(path, ns=(OLD_NS, OLD_NS))
    return path


def test_a_digest_is_read_from_the_memo_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a", b"content")
    digest = hashes.file_sha256(path)
    assert digest == hashlib.sha256(b"content").hexdigest()

    def read_again(*_: object) -> None:
        raise AssertionError("the file was read again")

    monkeypatch.setattr(hashes.hashlib, "file_digest", read_again)
    assert hashes.file_sha256(path) == digest


def test_other_bytes_of_the_same_size_and_time_are_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "a", b"content")
    hashes.file_sha256(path)
    replaced = write(tmp_path / "b", b"CONTENT")
    os.replace(replaced, path)
    assert hashes.file_sha256(path) == hashlib.sha256(b"CONTENT").hexdigest()


def test_a_file_written_just_now_is_not_remembered(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "_SETTLED_NS", 2 * 10**9)
    (tmp_path / "a").write_bytes(b"content")
    hashes.file_sha256(tmp_path / "a")
    assert not (home / "digests.json").exists()


@pytest.mark.parametrize("memo", [b"", b"{", b"[1]", b'{"x": 1}', b"\xff\xfe"])
def test_a_damaged_memo_only_costs_time(tmp_path: Path, home: Path, memo: bytes) -> None:
    home.mkdir()
    (home / "digests.json").write_bytes(memo)
    path = write(tmp_path / "a", b"content")
    for _ in range(2):
        assert hashes.file_sha256(path) == hashlib.sha256(b"content").hexdigest()


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        hashes.file_sha256(tmp_path / "none")
