"""The files of a built data set: train, valid and test as JSONL, and meta.json that says what they are."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mbjax.io.files import atomic_write

Line = dict[str, str]


def encode_lines(lines: Sequence[Line]) -> bytes:
    """The lines as JSONL, UTF-8, keys in their given order."""
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()


def write_split(out: Path, parts: Mapping[str, Sequence[Line]], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Writes `<part>.jsonl` for each part and `meta.json` into `out`; returns the meta document as written.

    `meta` gains `files` (sha256, bytes and lines of each) and `split_digest`: sha256 over the files' digests in the
    order of their names, so that one string names the whole split. meta.json comes last: where it stands, all the rest
    does. Raises FailureError where the system refuses to write.
    """
    files: dict[str, dict[str, Any]] = {}
    for part, lines in parts.items():
        data = encode_lines(lines)
        with atomic_write(out / f"{part}.jsonl") as file:
            file.write(data)
        digest = hashlib.sha256(data).hexdigest()
        files[f"{part}.jsonl"] = {"sha256": digest, "bytes": len(data), "lines": len(lines)}
    joined = "".join(files[name]["sha256"] for name in sorted(files))
    document = {**meta, "files": files, "split_digest": hashlib.sha256(joined.encode()).hexdigest()}
    with atomic_write(out / "meta.json") as file:
        file.write(json.dumps(document, ensure_ascii=False, indent=2).encode() + b"\n")
    return document
