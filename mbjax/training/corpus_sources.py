"""Documents of text, JSONL, Parquet and ArrayRecord files, one at a time."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mbjax.errors import InputError

_TXT_DOCUMENT = 4_096  # characters after which the next blank line of a .txt file ends a document
_TXT_MOST = 1 << 20  # characters at which a .txt document ends in any case: a file may hold no blank line, or no line
_BLOCK = 64  # records of Parquet and ArrayRecord decoded at once


@dataclasses.dataclass(frozen=True)
class Document:
    """One document as it stands in a file.

    text is a string, or a conversation ([{"role", "content"}, ...]) that is to be put through the chat template.
    where names file and line, at is the position in the file in bytes after it (about, for Parquet and ArrayRecord),
    problem says in a few words why there is no text, empty if there is.
    """

    text: str | list[dict[str, str]]
    where: str
    at: int
    problem: str = ""


def source_files(sources: Sequence[Path]) -> list[Path]:
    """The files of a list of files and folders, a folder's in the order of their names, at any depth.

    Raises InputError where one is not there, is of no known form, or a folder holds none.
    """
    files: list[Path] = []
    for source in map(Path, sources):
        found = [source]
        if source.is_dir():
            found = sorted(p for p in source.rglob("*") if p.suffix in _READERS and p.is_file())
            if not found:
                raise InputError(f"{source}: no {', '.join(_READERS)} file in this folder")
        elif not source.is_file():
            raise InputError(f"{source}: no such file; give every shard, or the folder that holds them")
        elif source.suffix not in _READERS:
            raise InputError(f"{source}: not a kind of file that is read; these are: {', '.join(_READERS)}")
        files += found
    if not files:
        raise InputError("no source; give text, JSONL, Parquet or ArrayRecord files, or folders of them")
    return files


def read_documents(path: Path, key: str = "text") -> Iterator[Document]:
    """The documents of one file, in order, never much of it in memory (Parquet and ArrayRecord: 64).

    `.txt`: pieces of at least 4,096 characters that end at a blank line (so that one long book is many documents).
    `.jsonl`: `{key: "..."}` or `{"messages": [...]}` on each line. `.parquet`: the same as columns. `.array_record`:
    each record is such a JSON object, or plain UTF-8 text. A record without readable text comes with its `problem`.
    Raises InputError, naming the file, where the file itself cannot be read.
    """
    try:
        yield from _READERS[path.suffix](path, key)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _txt(path: Path, key: str) -> Iterator[Document]:
    piece: list[str] = []
    size = at = start = 0
    with path.open("rb") as file:
        number = 1
        while raw := file.readline(_TXT_MOST):
            at += len(raw)
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                yield Document("", f"{path}, line {number}", at, f"not UTF-8 text ({error.reason})")
                line = ""
            number += raw.endswith(b"\n")
            blank = not line.strip()
            if piece or not blank:
                piece.append(line)
                size += len(line)
            if (blank and size >= _TXT_DOCUMENT) or size >= _TXT_MOST:
                yield Document("".join(piece).rstrip("\n"), f"{path}, line {start + 1}", at)
                piece, size, start = [], 0, number - 1
    if piece or at == 0:
        text = "".join(piece).rstrip("\n")
        yield Document(text, f"{path}, line {start + 1}", at, "" if text.strip() else "empty")


def _jsonl(path: Path, key: str) -> Iterator[Document]:
    at = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            at += len(raw)
            if raw.strip():
                yield _from_json(raw, f"{path}, line {number}", at, key)


def _from_json(raw: bytes, where: str, at: int, key: str) -> Document:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "") or getattr(error, "reason", "") or str(error)
        return Document("", where, at, f"not JSON: {reason}")
    if not isinstance(record, dict):
        return Document("", where, at, "not a JSON object")
    return _from_record(record, where, at, key)


def _from_record(record: dict[str, Any], where: str, at: int, key: str) -> Document:
    text = record.get(key)
    if text is None and "messages" in record:
        turns = record["messages"]
        if isinstance(turns, list) and turns and all(_is_turn(turn) for turn in turns):
            return Document([{"role": t["role"], "content": t["content"]} for t in turns], where, at)
        return Document("", where, at, "messages is no list of {role, content}")
    if not isinstance(text, str):
        return Document("", where, at, f"no text under the key '{key}'")
    if not text.strip():
        return Document("", where, at, "empty")
    return Document(text, where, at)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _parquet(path: Path, key: str) -> Iterator[Document]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"{path}: reading this needs pyarrow; pip install 'mbjax[data]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in (key, "messages") if name in file.schema_arrow.names]
            if not names:
                found = ", ".join(file.schema_arrow.names[:10])
                raise InputError(f"{path}: no column '{key}'; it has: {found}; choose one with the option for the key")
            size, number = path.stat().st_size, 0
            for batch in file.iter_batches(batch_size=_BLOCK, columns=names, use_threads=False):
                for record in batch.to_pylist():
                    number += 1
                    at = size * number // max(file.metadata.num_rows, 1)
                    yield _from_record(record, f"{path}, row {number}", at, key)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from error


def _array_record(path: Path, key: str) -> Iterator[Document]:
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError:
        raise InputError(f"{path}: reading this needs array_record, which this system does not have") from None
    try:
        reader = ArrayRecordReader(str(path))
        size, n = path.stat().st_size, reader.num_records()
        for start in range(0, n, _BLOCK):
            for i, raw in enumerate(reader.read(start, min(start + _BLOCK, n)), start + 1):
                yield _from_bytes(raw, f"{path}, record {i}", size * i // n, key)
        reader.close()
    except (RuntimeError, ValueError, IndexError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a readable ArrayRecord file: {reason}") from error


def _from_bytes(raw: bytes, where: str, at: int, key: str) -> Document:
    if raw.startswith(b"{"):
        found = _from_json(raw, where, at, key)
        if not found.problem.startswith("not JSON"):
            return found
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        return Document("", where, at, "neither UTF-8 text nor a JSON object")
    return Document(text, where, at, "" if text.strip() else "empty")


_READERS = {
    ".txt": _txt,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
    ".array_record": _array_record,
    ".arrayrecord": _array_record,
}
