"""Real texts of many kinds that every Python installation carries: prose, licences, code, tables, many languages."""

import ast
import html.entities
import inspect
import json
import mimetypes
import sysconfig
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from mixed_text import mixed_lines


def real_texts() -> dict[str, str]:
    """Name -> text, each of several thousand characters; the same for one version of Python."""
    texts = {f"manual: {topic}": _manual(topic) for topic in ("lambda", "class", "strings", "operator-summary")}
    texts |= {f"about {name}": _docstring(name) for name in ("typing", "turtle", "pickle")}
    texts |= {f"code of {name}": inspect.getsource(import_module(name)) for name in ("heapq", "textwrap", "bisect")}
    texts |= {f"code of {name}": inspect.getsource(import_module(name)) for name in ("csv", "colorsys", "queue")}
    texts |= {
        "essay on heaps": import_module("heapq").__about__,
        "licence of Python": (Path(sysconfig.get_path("stdlib")) / "LICENSE.txt").read_text(),
        "licence of mbjax": (Path(__file__).parent.parent / "LICENSE").read_text(),
        "json": json.dumps(dict(sorted(html.entities.html5.items())[:300]), indent=1),
        "table": "\n".join(f"| {key} | {value} |" for key, value in sorted(mimetypes.types_map.items())),
        "mixed lines": "\n".join(mixed_lines(200, seed=1)),
        "Chinese, Japanese, Korean": "\n".join(line for line in mixed_lines(4000, seed=2) if _mostly(_is_cjk, line)),
    }
    return texts


def texts_of_lengths(
    encode: Callable[[str], list[int]], shortest: int = 16, longest: int = 1000
) -> list[tuple[str, list[int]]]:
    """Name and first token ids of every text; the lengths are spread evenly on a logarithmic scale.

    Raises ValueError where a text has fewer tokens than are wanted of it.
    """
    encoded = sorted(((name, encode(text)) for name, text in real_texts().items()), key=lambda pair: len(pair[1]))
    ratio = (longest / shortest) ** (1 / (len(encoded) - 1))
    chosen = []
    for i, (name, ids) in enumerate(encoded):
        length = round(shortest * ratio**i)
        if len(ids) < length:
            raise ValueError(f"'{name}' has {len(ids)} tokens; {length} are wanted")
        chosen.append((name, ids[:length]))
    return chosen


def _manual(topic: str) -> str:
    return import_module("pydoc_data.topics").topics[topic]


def _docstring(module: str) -> str:
    """Without importing it: turtle wants a window, which a Python of a server has no library for."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""


def _mostly(kind: Callable[[str], bool], line: str) -> bool:
    return sum(map(kind, line)) * 2 > len(line)


def _is_cjk(char: str) -> bool:
    return "\u3000" <= char <= "\ud7a3"
