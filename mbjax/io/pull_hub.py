"""A model repository of the Hugging Face hub, through huggingface-hub, which resumes and checks what it fetches."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

from mbjax.errors import FailureError
from mbjax.io.catalog import Entry, HubSource
from mbjax.io.files import atomic_write

_WANTED = ["*.safetensors", "*.json", "*.model", "*.jinja"]
_UNWANTED = ["*/*"]  # other formats of the same weights lie in folders
_COMPLETE = ".complete.json"


def present(entry: Entry, folder: Path) -> Path | None:
    """The directory, if every file noted when it was complete is there with its size."""
    try:
        note = json.loads((folder / _COMPLETE).read_bytes())
        right = note["revision"] == _source(entry).revision and all(
            (folder / name).stat().st_size == size for name, size in note["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return folder if right else None


def fetch(entry: Entry, folder: Path, progress: Callable[[int, int], None] | None) -> Path:
    """Downloads the repository's weights, tokenizer and settings. The hub's library shows its own progress bar.

    Raises FailureError in one line; what had come stays for the next try.
    """
    import huggingface_hub

    source = _source(entry)
    try:
        huggingface_hub.snapshot_download(
            source.repo,
            revision=source.revision,
            local_dir=folder,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
        )
    except Exception as error:  # the network libraries below the hub's raise errors of many families
        raise FailureError(_reason(source, folder, error)) from error
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    if not any(name.endswith(".safetensors") for name in files):
        raise FailureError(f"{source.repo}: the repository holds no safetensors file")
    if progress:
        progress(sum(files.values()), sum(files.values()))
    with atomic_write(folder / _COMPLETE) as file:
        file.write(json.dumps({"revision": source.revision, "files": files}, indent=1).encode())
    return folder


def _source(entry: Entry) -> HubSource:
    assert isinstance(entry.source, HubSource)
    return entry.source


def _reason(source: HubSource, folder: Path, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{folder}: the disk is full; free some space or set MBJAX_HOME to another disk"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or (source.gated and status in (401, 403)):
        return (
            f"{source.repo} is gated: accept its licence on the hub and log in with `hf auth login`,"
            " or give a local directory instead of the name"
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return f"{source.repo}: the hub knows no such repository or revision"
    gated = " (it is gated: it also needs an accepted licence and a login)" if source.gated else ""
    return (
        f"{source.repo}: the hub cannot be reached{gated}; give a local HF directory or GGUF file instead of the name"
    )
