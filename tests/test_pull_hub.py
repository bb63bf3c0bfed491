"""Bases from the hub: complete directories are taken as they are, and every failure is one line."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from mbjax.errors import FailureError
from mbjax.io import catalog
from mbjax.io.pull import pull

FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}"}


class FakeHub:
    def __init__(self, files: dict[str, bytes], error: Exception | None = None):
        self.files, self.error, self.asked = files, error, []

    def __call__(self, repo: str, *, local_dir: Path, **settings: Any) -> str:
        self.asked.append((repo, settings))
        local_dir.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (local_dir / name).write_bytes(content)
        if self.error:
            raise self.error
        return str(local_dir)


@pytest.fixture
def hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeHub]:
    def install(gated: bool = False, **settings: Any) -> FakeHub:
        fake = FakeHub(**{"files": FILES, **settings})
        entry = catalog.Entry("tiny", "a test", "none", catalog.HubSource("owner/tiny", "main", gated))
        monkeypatch.setattr(catalog, "entries", lambda: {"tiny": entry})
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
        return fake

    return install


def test_a_repository_is_fetched_once(hub: Callable[..., FakeHub], home: Path) -> None:
    fake = hub()
    path = pull("tiny")
    assert path == home / "pulled" / "tiny"
    assert pull("tiny") == path
    assert [repo for repo, _ in fake.asked] == ["owner/tiny"]
    wanted = fake.asked[0][1]["allow_patterns"]
    assert {"*.safetensors", "*.json", "*.model", "*.jinja"} == set(wanted)


@pytest.mark.parametrize("damage", ["missing", "shorter", "note"])
def test_an_incomplete_directory_is_fetched_again(hub: Callable[..., FakeHub], damage: str) -> None:
    fake = hub()
    path = pull("tiny")
    if damage == "missing":
        (path / "model.safetensors").unlink()
    elif damage == "shorter":
        (path / "model.safetensors").write_bytes(b"w")
    else:
        (path / ".complete.json").write_bytes(b"{")
    pull("tiny")
    assert len(fake.asked) == 2
    assert (path / "model.safetensors").read_bytes() == b"weights"


def test_what_came_before_a_failure_is_not_taken_for_complete(hub: Callable[..., FakeHub]) -> None:
    hub(error=ConnectionError("reset"))
    with pytest.raises(FailureError):
        pull("tiny")
    fake = hub()
    pull("tiny")
    assert len(fake.asked) == 1


class _Response:
    def __init__(self, status_code: int):
        self.status_code, self.headers, self.request, self.text = status_code, {}, None, ""


@pytest.mark.parametrize(
    ("gated", "error", "named"),
    [
        (False, ConnectionError("[Errno -2] Name or service not known\nand more"), "cannot be reached.*local"),
        (False, errors.LocalEntryNotFoundError("offline"), "cannot be reached.*local"),
        (False, errors.OfflineModeIsEnabled("offline"), "cannot be reached"),
        (True, ConnectionError("no route"), "it is gated"),
        (True, errors.GatedRepoError("401", response=_Response(401)), "accept its licence"),
        (True, errors.HfHubHTTPError("403", response=_Response(403)), "accept its licence"),
        (False, errors.RepositoryNotFoundError("404", response=_Response(404)), "no such repository"),
        (False, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "disk is full"),
        (False, ValueError("anything"), "cannot be reached"),
    ],
)
def test_failures_are_one_line(hub: Callable[..., FakeHub], gated: bool, error: Exception, named: str) -> None:
    hub(gated=gated, error=error)
    with pytest.raises(FailureError, match=named) as caught:
        pull("tiny")
    assert "\n" not in str(caught.value)


def test_a_repository_without_weights_is_one_line(hub: Callable[..., FakeHub]) -> None:
    hub(files={"config.json": b"{}"})
    with pytest.raises(FailureError, match="no safetensors"):
        pull("tiny")
