"""How the measuring programs report: one JSON document, or a page with its table for docs/."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mbjax.io.files import atomic_write

DOCS = Path(__file__).parent.parent / "docs"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """With the options that all of them take."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="print one JSON document")
    made.add_argument("--write", action="store_true", help="write the table into docs/")
    return made


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def progress(what: str, every: int) -> Callable[[int, int], None]:
    """Tells on stderr how many of all are done, at most every so many and at the end."""
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done - told >= every or done == total:
            told = done
            print(f"{what} {done} of {total}", file=sys.stderr, flush=True)

    return tell


def load() -> str:
    """What else ran when a timed program began, as a sentence: its figures are to be read with it."""
    return f"Load of the machine at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores.\n\n"


def publish(options: argparse.Namespace, result: dict[str, Any], title: str, text: str, page: str) -> None:
    """Prints the result, and writes docs/`page` where that was asked for."""
    print(json.dumps(result) if options.json else text)
    if options.write:
        command = " ".join(["python", f"infer/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        with atomic_write(DOCS / page) as file:
            file.write(f"# {title}\n\n`{command}`\n\n{text}".encode())
