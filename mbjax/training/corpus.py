"""From documents to rows of tokens on disk: what repeats is left out, a part is held out, the rest tokenised once."""

import contextlib
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbjax.errors import FailureError, InputError
from mbjax.io.files import new_directory, write_errors
from mbjax.io.hashes import file_sha256
from mbjax.io.strict_json import canonical
from mbjax.io.tokenizer import Tokenizer
from mbjax.training.corpus_rows import (
    FORMAT,
    Corpus,
    CorpusInfo,
    RowWriter,
    open_corpus,
    read_info,
    write_info,
)
from mbjax.training.corpus_sources import Document, read_documents, source_files
from mbjax.training.near_duplicates import N_HASHES, near_duplicates, signature

__all__ = ["Corpus", "CorpusInfo", "open_corpus", "write_corpus"]

PARTS = ("train", "valid")
_BATCH_CHARACTERS = 1 << 20  # of text tokenised at once
_CHANGED = "the sources changed while they were read; write the corpus again once they are still"
_KEEP, _DUPLICATE, _NEAR = 0, 1, 2

Watch = Callable[[str, int, int], None]  # (what is being done, bytes of the sources done, of how many)


def write_corpus(
    sources: Sequence[Path],
    tokenizer: Tokenizer | Path,
    out: Path,
    *,
    row_length: int,
    held_out: float = 0.01,
    near_duplicates: float | None = 0.8,
    key: str = "text",
    skip_unreadable: bool = False,
    watch: Watch = lambda stage, done, total: None,
) -> CorpusInfo:
    """Writes the rows of a corpus to `out/train` and `out/valid`, as `open_corpus` reads them; returns train's info.

    sources: files and folders as `corpus_sources` reads them, key the field of a record that holds the text.
    tokenizer: a tokenizer, or the folder of one. Each document is begin (if the tokenizer has it), text, end; special
    tokens written out in a text stay text, a conversation goes through the chat template. Documents whose words are
    the same as an earlier one's are left out, and from the similarity `near_duplicates` on (None: not looked for) near
    repetitions too. A share of `held_out` goes to `valid`, chosen by each document's own hash, so that it stays there
    whatever else the corpus holds; its text is kept in `valid/text.jsonl`, for `mbjax eval` and other measures of the
    same documents. Sources are read twice, a document at a time; memory is about 600 bytes a document.
    The same sources, tokenizer and settings give the same bytes, and a second call finds them there and does nothing.

    Raises InputError for sources that cannot be read (skip_unreadable: counted instead, but for a missing file), and
    FailureError where `out` cannot be written; nothing is half-written.
    """
    files = source_files(sources)
    tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.from_hf(Path(tokenizer))
    end = _end_id(tokenizer)
    _check_settings(row_length, held_out, near_duplicates)
    request = _request(files, tokenizer, watch, row_length, held_out, near_duplicates, key, skip_unreadable)
    done = _already(out, request)
    if done is not None:
        return done
    reader = _Reader(files, key, skip_unreadable, tokenizer)
    fates = _fates(reader, near_duplicates, out, watch)
    shared = {
        "row_length": row_length,
        "vocab_size": tokenizer.vocab_size,
        "dtype": "<u2" if tokenizer.vocab_size <= 2**16 else "<u4",
        "tokenizer_digest": tokenizer.digest,
        "request_digest": request,
        "sources": tuple(path.name for path in files),
        "held_out": held_out,
        "near_duplicates": near_duplicates,
        "n_empty": reader.n_empty,
        "n_unreadable": reader.n_unreadable,
        "n_duplicates": int((fates == _DUPLICATE).sum()),
        "n_near_duplicates": int((fates == _NEAR).sum()),
    }
    documents = ((text, [*ids, end]) for text, ids in _coded(reader, fates, tokenizer, watch))
    _write_parts(out, documents, shared)
    return read_info(out / PARTS[0])


def _write_parts(out: Path, documents: Iterator[tuple[str, list[int]]], shared: dict[str, Any]) -> None:
    """The rows and manifests of both parts; `shared` is what the manifests have in common."""
    with new_directory(out) as folder, contextlib.ExitStack() as stack:
        length, dtype = shared["row_length"], shared["dtype"]
        train, valid = (RowWriter(folder / part, length, dtype, with_text=part == "valid") for part in PARTS)
        writers = stack.enter_context(train), stack.enter_context(valid)
        for text, ids in documents:
            writers[is_held_out(text, shared["held_out"])].add(ids, text)
        for part, writer in zip(PARTS, writers, strict=True):
            files = writer.finish()
            write_info(folder / part, CorpusInfo(part=part, files=files, **writer.counts(), **shared))


def _end_id(tokenizer: Tokenizer) -> int:
    if not tokenizer.eos_ids:
        raise InputError("the tokenizer names no end-of-text token; documents could not be told apart")
    return min(tokenizer.eos_ids)  # those that end a turn only come after it in every vocabulary in use


def _check_settings(row_length: int, held_out: float, similarity: float | None) -> None:
    if not 8 <= row_length <= 2**20:
        raise InputError(f"rows of {row_length} tokens: give 8 to {2**20}")
    if not 0 <= held_out < 1:
        raise InputError(f"a held-out share of {held_out}: give 0 or more, and less than 1")
    if similarity is not None and not 0.5 <= similarity <= 1:
        raise InputError(f"near-duplicates from a similarity of {similarity}: give 0.5 to 1")


def _request(files: Sequence[Path], tokenizer: Tokenizer, watch: Watch, *settings: object) -> str:
    """sha256 of everything that the rows depend on."""
    total, done, digests = sum(path.stat().st_size for path in files), 0, []
    for path in files:
        digests.append([path.name, file_sha256(path)])
        done += path.stat().st_size
        watch("looking at the sources", done, total)
    template = tokenizer.template.digest if tokenizer.template else None
    asked = [FORMAT, digests, tokenizer.digest, template, sorted(tokenizer.eos_ids), list(settings)]
    return hashlib.sha256(canonical(asked)).hexdigest()


def _already(out: Path, request: str) -> CorpusInfo | None:
    """The info of what lies there, if it is what is asked for. Raises InputError if something else lies there."""
    if not out.exists():
        return None
    if not out.is_dir() or not {path.name for path in out.iterdir()} <= set(PARTS):
        raise InputError(f"{out}: already there and no corpus; give another folder")
    try:
        infos = [open_corpus(out / part).info for part in PARTS]
    except InputError:
        return None  # damaged or half of another format: it is written again
    return infos[0] if all(info.request_digest == request for info in infos) else None


class _Reader:
    """Goes through all documents in their order; both passes see the same ones."""

    def __init__(self, files: Sequence[Path], key: str, skip_unreadable: bool, tokenizer: Tokenizer):
        self.total = sum(path.stat().st_size for path in files)
        self.n_empty = self.n_unreadable = 0
        self._files, self._key, self._skip, self._template = files, key, skip_unreadable, tokenizer.template

    def texts(self) -> Iterator[tuple[int, str, bool]]:
        """(bytes read so far, text, whether it is a conversation) of each document that has text."""
        self.n_empty = self.n_unreadable = before = 0
        for path in self._files:
            try:
                for document in read_documents(path, self._key):
                    text = self._text(document)
                    if text is not None:
                        yield before + document.at, text, not isinstance(document.text, str)
            except InputError:
                if not self._skip:
                    raise
                self.n_unreadable += 1  # the rest of a damaged file
            before += path.stat().st_size

    def _text(self, document: Document) -> str | None:
        text, problem = document.text, document.problem
        if problem == "empty":
            self.n_empty += 1
            return None
        if not problem and not isinstance(text, str):
            if self._template is None:
                raise InputError(f"{document.where}: a conversation, but the tokenizer has no chat template")
            text = self._template.render(text, add_generation_prompt=False)
        if not problem and not _is_unicode(text):
            problem = "not valid Unicode (it holds half of a surrogate pair)"
        if problem and not self._skip:
            raise InputError(f"{document.where}: {problem}")
        self.n_unreadable += bool(problem)
        return None if problem else str(text)


def _is_unicode(text: object) -> bool:
    try:
        str(text).encode()
    except UnicodeEncodeError:
        return False
    return True


def _fates(reader: _Reader, threshold: float | None, out: Path, watch: Watch) -> np.ndarray:
    """What becomes of each document: uint8 [N], one of _KEEP, _DUPLICATE and _NEAR. Signatures go to a file by `out`."""
    hashes, folder = bytearray(), out.absolute().parent
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with write_errors(folder), tempfile.TemporaryFile(dir=folder, prefix=".signatures.") as file:
        for done, text, _ in reader.texts():
            hashes += _text_hash(text)
            if threshold is not None:
                file.write(signature(text).tobytes())
            watch("looking for repetitions", done, reader.total)
        file.flush()
        fates = _repeated(np.frombuffer(hashes, "V16")).astype(np.uint8) * np.uint8(_DUPLICATE)
        if threshold is not None and len(fates):
            signatures = np.memmap(file, np.uint32, "r", shape=(len(fates), N_HASHES))
            fates[near_duplicates(signatures, threshold, fates != _KEEP)] = _NEAR
    if not len(fates):
        raise InputError(f"{', '.join(map(str, reader._files[:3]))}: no document with text")
    return fates


def _text_hash(text: str) -> bytes:
    """16 bytes that are the same for texts of the same words, however spaced."""
    return hashlib.sha256(" ".join(text.split()).encode()).digest()[:16]


def _repeated(hashes: np.ndarray) -> np.ndarray:
    """Which entries are equal to an earlier one: bool [N]."""
    pairs = np.frombuffer(hashes.tobytes(), "<u8").reshape(-1, 2)
    order = np.lexsort((np.arange(len(pairs)), pairs[:, 1], pairs[:, 0]))
    same = (pairs[order][1:] == pairs[order][:-1]).all(axis=1)
    repeated = np.zeros(len(pairs), bool)
    repeated[order[1:][same]] = True
    return repeated


def is_held_out(text: str, share: float) -> bool:
    """Whether a text belongs to the held-out share: by its words alone."""
    return int.from_bytes(_text_hash(text)[:8], "big") < share * 2**64


def _coded(reader: _Reader, fates: np.ndarray, tokenizer: Tokenizer, watch: Watch) -> Iterator[tuple[str, list[int]]]:
    """The text and the tokens of each document that stays, tokenised in batches."""
    batch: list[tuple[str, bool]] = []
    size = n = 0
    for done, text, chat in reader.texts():
        if n >= len(fates):
            raise FailureError(_CHANGED)
        if fates[n] == _KEEP:
            batch.append((text, chat))
            size += len(text)
        n += 1
        if size >= _BATCH_CHARACTERS:
            yield from _encoded(batch, tokenizer)
            batch, size = [], 0
            watch("writing rows", done, reader.total)
    if n != len(fates):
        raise FailureError(_CHANGED)
    yield from _encoded(batch, tokenizer)
    watch("writing rows", reader.total, reader.total)


def _encoded(batch: Sequence[tuple[str, bool]], tokenizer: Tokenizer) -> Iterator[tuple[str, list[int]]]:
    coded = {
        chat: iter(tokenizer.encode_batch([t for t, c in batch if c is chat], add_bos=not chat, special=chat))
        for chat in (False, True)
    }
    return ((text, next(coded[chat])) for text, chat in batch)
