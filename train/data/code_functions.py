"""Reads the functions of the Python standard library's own source."""

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Tests, vendored packages, generated tables and examples.
LEFT_OUT = ("test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data", "turtledemo",
             "__phello__", "ensurepip", "lib2to3", "config-")  # fmt: skip


@dataclass(frozen=True)
class Function:
    """Source without its class's indentation: `head` is the signature with the docstring, `body` what follows."""

    module: str
    name: str
    signature: str
    docstring: str
    head: str
    body: str


def read_library(root: Path | None = None) -> Iterator[Function]:
    """Every function with a body of the library at `root` (of the running Python, if None), in the order of the files."""
    root = root or Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if not any(part.startswith(LEFT_OUT) for part in parts):
            try:
                source = path.read_text(encoding="utf-8")
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of old escapes in the library's own strings
                    tree = ast.parse(source)
            except (UnicodeDecodeError, SyntaxError):
                continue
            yield from functions(source, tree, parts[0].removesuffix(".py"))


def functions(source: str, tree: ast.AST, module: str) -> Iterator[Function]:
    """The functions of one file that are in no other function, methods included."""
    lines = source.split("\n")
    for parent in ast.walk(tree):
        if not isinstance(parent, ast.Module | ast.ClassDef):
            continue
        for node in parent.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found = _function(node, lines, module)
                if found is not None:
                    yield found


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str], module: str) -> Function | None:
    docstring = ast.get_docstring(node) or ""
    body = node.body[1:] if docstring else node.body
    if not body or node.end_lineno is None:
        return None
    previous = node.body[0].end_lineno if docstring else None
    first = previous if previous is not None else _end_of_signature(node, lines)
    start = node.lineno - 1
    if first < start + 1 or body[0].lineno <= first:  # a body on the line of its signature
        return None
    indent = len(lines[start]) - len(lines[start].lstrip())
    own = [_dedented(line, indent) for line in lines[start : node.end_lineno]]
    if any(line is None for line in own):  # a string that reaches into the margin
        return None
    text = [line for line in own if line is not None]
    head = "\n".join(text[: first - start])
    rest = "\n".join(text[first - start :]).strip("\n")
    signature = "\n".join(text[: _end_of_signature(node, lines) - start])
    return Function(module, node.name, signature, re.sub(r"\s+", " ", docstring), head, rest) if rest.strip() else None


def _end_of_signature(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """The number of lines of the file up to the signature's last, found as the one before the first statement."""
    at = node.body[0].lineno - 1
    while at > node.lineno and (not lines[at - 1].strip() or lines[at - 1].lstrip().startswith("#")):
        at -= 1
    return at


def _dedented(line: str, indent: int) -> str | None:
    return line[indent:] if not line[:indent].strip() else None
