"""Reads the functions of a library's own source: the Python standard library's, or that of an installed package."""

import ast
import builtins
import importlib.util
import re
import symtable
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mbjax.errors import InputError

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
    for parts, source, tree in _files(root or Path(sysconfig.get_path("stdlib"))):
        yield from functions(source, tree, parts[0].removesuffix(".py"))


def _files(root: Path) -> Iterator[tuple[tuple[str, ...], str, ast.Module]]:
    """Path in parts, text and tree of each file that can be read."""
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
            yield parts, source, tree


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


def standing_alone(root: Path | None = None) -> Iterator[Function]:
    """The documented functions of a library that use nothing of their file but what it imports from elsewhere; those
    imports stand before `signature` and `head`."""
    for parts, source, tree in _files(root or Path(sysconfig.get_path("stdlib"))):
        imports = _imports(tree)
        for function in functions(source, tree, parts[0].removesuffix(".py")):
            used = free_names(f"{function.head}\n{function.body}")
            if function.docstring and used is not None and used <= imports.keys():
                lines = "\n".join(sorted({imports[name] for name in used}))
                start = f"{lines}\n\n\n" if lines else ""
                yield replace(function, signature=start + function.signature, head=start + function.head)


def package_root(name: str) -> Path:
    """Where an installed package's source lies. Raises InputError where it is not installed."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise InputError(f"the package {name} is not installed; pip install 'mbjax[data]'")
    return Path(next(iter(found.submodule_search_locations)))


def free_names(source: str) -> set[str] | None:
    """The names that one function takes from outside, builtins aside; None where it is a method."""
    top, tree = symtable.symtable(source, "function", "exec"), ast.parse(source)
    name = next(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    own = next(child for child in top.get_children() if child.get_name() == name)  # besides those of its defaults
    parameters = own.get_parameters() if isinstance(own, symtable.Function) else ()
    if name.startswith("__") or {"self", "cls"} & set(parameters):
        return None
    found, tables = set(), [own]
    while tables:
        table = tables.pop()
        tables += table.get_children()
        found |= {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global()}
    outside = [part for node in tree.body if not isinstance(node, ast.ClassDef) for part in ast.walk(node)]
    for node in outside:  # annotations and defaults are looked up outside of the function
        hint = node.annotation if isinstance(node, ast.arg) else getattr(node, "returns", None)
        found |= {part.id for part in ast.walk(hint) if isinstance(part, ast.Name)} if hint else set()
    found |= {symbol.get_name() for symbol in top.get_symbols() if symbol.is_referenced()}
    return found - set(dir(builtins)) - {name}


def _imports(tree: ast.Module) -> dict[str, str]:
    """Name -> the statement that imports it, of what a file takes from other libraries."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {name.asname or name.name: f"import {ast.unparse(name)}" for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found |= {name.asname or name.name: f"from {node.module} import {ast.unparse(name)}" for name in node.names}
    return {name: line for name, line in found.items() if "." not in name}
