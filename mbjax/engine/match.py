"""When a greedy answer counts as right: equal, ending in the same number, or code that parses."""

import ast
import re
import warnings
from decimal import Decimal, InvalidOperation

METRICS = {"exact": "exact_match", "last_number": "last_number", "parses": "parses"}  # match kind -> metric's name

_NUMBER = re.compile(r"(?:(?<![\w.)])-)?\d[\d,]*(?:\.\d+)?")
_FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
_FENCE = re.compile(r"```[\w+-]*\n(.*?)(?:```|\Z)", re.DOTALL)


def is_right(kind: str, text: str, answer: str, prefix: str = "", *, cut_off: bool = False) -> bool:
    """Whether `text`, as it was generated, is right by the match `kind`, a key of METRICS.

    - exact: it equals the answer, both stripped.
    - last_number: its last number equals that of the answer; thousands separators and trailing zeros do not count.
    - parses: as Python, behind `prefix` (a signature) or by itself if it holds a function of its own; a fenced block
      stands for itself. `cut_off` says that the token limit ended it: its last, unfinished line is then left out.
    """
    if kind == "exact":
        return text.strip() == answer.strip()
    if kind == "last_number":
        found = last_number(text)
        return found is not None and found == last_number(answer)
    return _parses(text, prefix, cut_off)


def last_number(text: str) -> Decimal | None:
    """The last number of a text, None if it has none; a minus behind a word, a number or a bracket is no sign."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", ""))
    except InvalidOperation:
        return None


def fenced_code(text: str) -> str:
    """The first fenced block of a text, or the text itself where there is none."""
    fenced = _FENCE.search(text)
    return fenced[1] if fenced else text.rstrip()


def _parses(text: str, prefix: str, cut_off: bool) -> bool:
    code = fenced_code(text)
    if cut_off and text.count("```") < 2:
        code = code.rpartition("\n")[0]
    if not code.strip():
        return False
    alone, behind = _tree(code), _tree(prefix + code)
    if alone is not None and any(isinstance(node, _FUNCTION) for node in ast.walk(alone)):
        return True
    if behind is None:
        return False
    if not prefix:
        return True
    first = behind.body[0]  # a text at the margin, behind a docstring, would parse and be no body
    grown = (first.end_lineno or 0) > prefix.count("\n")
    return grown and all(isinstance(node, _FUNCTION | ast.ClassDef) for node in behind.body)


def _tree(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes and comparisons: they are no errors
            return ast.parse(code)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
