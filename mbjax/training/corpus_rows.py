"""Rows of tokens on disk: documents packed to a fixed length, written once, read at random through a memory map."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from mbjax.errors import InputError
from mbjax.io.hashes import file_sha256
from mbjax.io.strict_json import Fields, parse_object

MANIFEST, TOKENS, SEGMENTS, TEXT = "manifest.json", "tokens.bin", "segments.bin", "text.jsonl"
FORMAT = 1
_OPEN_ROWS = 64  # rows that a document may still go into: packing is one pass with little memory
_MOST_SEGMENTS = 2**16 - 1


@dataclasses.dataclass(frozen=True)
class CorpusInfo:
    """What a folder of rows holds, as its manifest says.

    n_tokens counts begin and end tokens but no padding; n_bytes is the UTF-8 text of n_documents. Every token of a
    document but its first is predicted exactly once, n_targets in all: the sum of their losses, over n_bytes, is the
    loss of the text per byte. The counts of what was left out are of the whole corpus, not of the part.
    """

    part: str
    row_length: int
    n_rows: int
    n_tokens: int
    n_targets: int
    n_documents: int
    n_bytes: int
    vocab_size: int
    dtype: str
    tokenizer_digest: str
    request_digest: str
    sources: tuple[str, ...]
    held_out: float
    near_duplicates: float | None
    n_empty: int
    n_unreadable: int
    n_duplicates: int
    n_near_duplicates: int
    files: dict[str, str]  # name -> sha256


class Corpus:
    """Rows in a folder, by number, in memory only while they are used."""

    def __init__(self, info: CorpusInfo, tokens: np.ndarray, segments: np.ndarray):
        self.info, self._tokens, self._segments = info, tokens, segments

    def __len__(self) -> int:
        return self.info.n_rows

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """tokens, segments and positions of a row, each int32 [T].

        segments: 0 is padding, 1.. are the documents of the row. positions count from 0 within each.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        segments = self._segments[index].astype(np.int32)
        return {
            "tokens": self._tokens[index].astype(np.int32),
            "segments": segments,
            "positions": row_positions(segments),
        }


def row_positions(segments: np.ndarray) -> np.ndarray:
    """How far each token is from the beginning of its run of equal segments: int32 [T]; 0 in padding."""
    at = np.arange(len(segments), dtype=np.int32)
    begins = np.concatenate([[True], segments[1:] != segments[:-1]])
    return np.where(segments > 0, at - np.maximum.accumulate(np.where(begins, at, 0)), 0).astype(np.int32)


def open_corpus(folder: Path, *, verify: bool = True) -> Corpus:
    """The rows in a folder that `write_corpus` made: its `train` or its `valid`.

    verify compares the files with the manifest's sha256 (remembered while a file does not change). Raises InputError
    naming the file that is missing, damaged or of another length.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        parts = [name for name in ("train", "valid") if (folder / name / MANIFEST).is_file()]
        hint = f"give one of its parts: {', '.join(parts)}" if parts else "write it with `mbjax train data`"
        raise InputError(f"{folder}: no corpus here ({MANIFEST} is missing); {hint}")
    info = read_info(folder)
    for name, digest in info.files.items():
        _check_file(folder / name, info, digest if verify else None)
    shape = (info.n_rows, info.row_length)
    if not info.n_rows:
        return Corpus(info, np.zeros(shape, info.dtype), np.zeros(shape, "<u2"))
    tokens = np.memmap(folder / TOKENS, info.dtype, "r", shape=shape)
    return Corpus(info, tokens, np.memmap(folder / SEGMENTS, "<u2", "r", shape=shape))


def read_info(folder: Path) -> CorpusInfo:
    """The manifest of a folder of rows. Raises InputError naming the file where it is damaged."""
    path = folder / MANIFEST
    try:
        document = parse_object(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    fields = Fields(document, str(path))
    if fields.take("format") != FORMAT:
        raise InputError(f"{path}: written in another format; write the corpus again")
    names = {field.name for field in dataclasses.fields(CorpusInfo)}
    if missing := sorted(names - set(document)):
        raise InputError(f"{path}: {missing[0]} is missing; write the corpus again")
    values: dict[str, Any] = {name: document[name] for name in names} | {"sources": tuple(document["sources"])}
    info = CorpusInfo(**values)
    whole = (info.row_length, info.n_rows, info.n_tokens, info.n_bytes, info.vocab_size)
    if not all(isinstance(n, int) and n >= 0 for n in whole) or info.dtype not in ("<u2", "<u4"):
        raise InputError(f"{path}: holds impossible numbers; write the corpus again")
    if not isinstance(info.files, dict) or not {TOKENS, SEGMENTS} <= set(info.files) <= {TOKENS, SEGMENTS, TEXT}:
        raise InputError(f"{path}: names other files than {TOKENS} and {SEGMENTS}; write the corpus again")
    return info


def _check_file(path: Path, info: CorpusInfo, digest: str | None) -> None:
    width = np.dtype(info.dtype if path.name == TOKENS else "<u2").itemsize
    expected = info.n_rows * info.row_length * width
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: missing; write the corpus again") from error
    if size != expected and path.name != TEXT:
        raise InputError(f"{path}: has {size} bytes where the manifest wants {expected}; write the corpus again")
    if digest is not None and file_sha256(path) != digest:
        raise InputError(f"{path}: damaged (its sha256 is not the manifest's); write the corpus again")


class RowWriter:
    """Packs documents, in the order they come, into rows and appends full ones to the files of a folder.

    A document longer than a row is cut; its next piece begins with the last token of the one before, so that cutting
    loses no prediction. A piece goes into the fullest of the 64 open rows that it fits, else into a new one; when
    there are too many, the fullest is written. with_text: the documents themselves are kept beside the rows.
    """

    def __init__(self, folder: Path, row_length: int, dtype: str, *, with_text: bool = False):
        folder.mkdir(parents=True)
        self._length, self._dtype = row_length, np.dtype(dtype)
        names = (TOKENS, SEGMENTS, TEXT) if with_text else (TOKENS, SEGMENTS)
        self._files = {name: _HashedFile((folder / name).open("wb")) for name in names}
        self._open: list[list[list[int]]] = []  # pieces of each open row
        self._used: list[int] = []
        self.n_rows = self.n_tokens = self.n_targets = self.n_documents = self.n_bytes = 0

    def add(self, ids: Sequence[int], text: str) -> None:
        """One document: its tokens, and its text."""
        self.n_documents, self.n_bytes = self.n_documents + 1, self.n_bytes + len(text.encode())
        self.n_targets += len(ids) - 1
        if TEXT in self._files:
            self._files[TEXT].write((json.dumps({"text": text}, ensure_ascii=False) + "\n").encode())
        step = self._length - 1
        for start in range(0, max(len(ids) - 1, 1), step):
            self._place(ids[start : start + self._length])

    def _place(self, piece: Sequence[int]) -> None:
        self.n_tokens += len(piece)
        room = self._length - len(piece)
        fitting = [i for i, used in enumerate(self._used) if used <= room and len(self._open[i]) < _MOST_SEGMENTS]
        if fitting:
            at = max(fitting, key=lambda i: (self._used[i], -i))
            self._open[at].append(list(piece))
            self._used[at] += len(piece)
        else:
            at = len(self._open)
            self._open.append([list(piece)])
            self._used.append(len(piece))
        if self._used[at] >= self._length - 1:  # nothing worth predicting fits in one place
            self._write(at)
        elif len(self._open) > _OPEN_ROWS:
            self._write(int(np.argmax(self._used)))

    def _write(self, at: int) -> None:
        pieces = self._open.pop(at)
        used = self._used.pop(at)
        tokens, segments = np.zeros(self._length, self._dtype), np.zeros(self._length, "<u2")
        tokens[:used] = np.concatenate([np.asarray(piece, self._dtype) for piece in pieces])
        segments[:used] = np.repeat(np.arange(1, len(pieces) + 1), [len(piece) for piece in pieces])
        self._files[TOKENS].write(tokens.tobytes())
        self._files[SEGMENTS].write(segments.tobytes())
        self.n_rows += 1

    def finish(self) -> dict[str, str]:
        """Writes the rows that are still open. Returns the sha256 of each file by its name."""
        while self._open:
            self._write(0)
        return {name: file.finish() for name, file in self._files.items()}

    def counts(self) -> dict[str, int]:
        """What `CorpusInfo` says of rows, tokens, targets, documents and bytes."""
        return {name: getattr(self, name) for name in ("n_rows", "n_tokens", "n_targets", "n_documents", "n_bytes")}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()


class _HashedFile:
    def __init__(self, file: BinaryIO):
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)

    def finish(self) -> str:
        self._file.flush()
        return self._digest.hexdigest()

    def close(self) -> None:
        self._file.close()


def write_info(folder: Path, info: CorpusInfo) -> None:
    document = {"format": FORMAT, **dataclasses.asdict(info)}
    (folder / MANIFEST).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
