"""The builder of the code data: functions are parted where they should be, and modules are on one side."""

import ast
from pathlib import Path

import pytest
import python_code
from code_functions import Function, functions, read_library
from python_code_phrasings import NEW, SEEN

from mbjax.engine.match import is_right
from mbjax.errors import InputError

SOURCE = '''
import os


class Box:
    """A box."""

    @property
    def size(self):
        """How large it is.

        In cubic metres.
        """
        # measured inside
        return self.w * self.h

    def empty(self): return True

    def only_said(self):
        """Nothing more."""


def bare(a,
         b=1):

    def inner():
        return a
    return inner
'''


def test_functions_are_parted_into_signature_docstring_and_body():
    size, bare = functions(SOURCE, ast.parse(SOURCE), "m")
    if size.name != "size":
        size, bare = bare, size
    assert size.signature == "def size(self):" and size.docstring == "How large it is. In cubic metres."
    assert size.head.startswith("def size") and size.head.endswith('"""')
    assert size.body == "    # measured inside\n    return self.w * self.h"
    assert bare.head == "def bare(a,\n         b=1):" and bare.docstring == ""
    assert bare.body == "    def inner():\n        return a\n    return inner"


def test_the_library_is_read_without_its_tests_and_every_function_parses_again(tmp_path: Path):
    (tmp_path / "test").mkdir()
    (tmp_path / "pack").mkdir()
    for name in ("test/a.py", "pack/b.py", "c.py"):
        (tmp_path / name).write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def f(:")
    found = list(read_library(tmp_path))
    assert {function.module for function in found} == {"c", "pack"}
    for function in found:
        ast.parse(f"{function.head}\n{function.body}")


def library(n: int = 40) -> list[Function]:
    """Modules of five functions; every body differs from all others in its words."""
    found = []
    for i in range(5 * n):
        body = "    " + "\n    ".join(f"v{i}{chr(97 + k)} = w{i * 13 + k}({i + k})" for k in range(3))
        head = f'def f{i}(x):\n    """Do the thing number {i} with great care."""'
        found.append(
            Function(f"m{i // 5}", f"f{i}", f"def f{i}(x):", f"Do the thing number {i} with great care.", head, body)
        )
    return found


def test_no_module_is_on_both_sides_and_the_answers_are_right():
    parts, meta = python_code.build(library(), n_test=20, n_parses=10)
    groups = {part: {line["group"] for line in lines} for part, lines in parts.items()}
    assert not groups["train"] & (groups["test"] | groups["test_body"] | groups["valid"])
    assert groups["test"] | groups["test_body"] <= set(meta["modules"]["test"])
    for line in parts["test"]:
        assert is_right("parses", line["answer"], line["answer"], line["prefix"]) and line["match"] == "parses"
    assert all(line["completion"].startswith("    ") for line in parts["test_body"])
    assert {line["task"] for line in parts["train"]} == {"complete", "write", "explain"}


def test_half_of_the_test_is_asked_in_new_words():
    assert not set(NEW["complete"]) & set(SEEN["complete"])
    lines = python_code.build(library(), n_test=20, n_parses=10)[0]["test_body"]
    starts = tuple(text.split("{head}")[0] for text in NEW["complete"])
    assert sum(line["prompt"].startswith(starts) for line in lines) == 10


def test_too_small_a_library_is_refused():
    with pytest.raises(InputError, match="ask for fewer"):
        python_code.build(library(), n_test=1000)
