"""The builder of the code data: functions are parted where they should be, and modules are on one side."""

import ast
import doctest
import random
from pathlib import Path
from typing import Any

import pytest
import python_code
from code_functions import Function, free_names, functions, read_library, standing_alone
from known_tasks import Known, known_tasks
from python_code_phrasings import NEW, SEEN
from small_functions import small_functions

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


ALONE = '''
import math
import os
from . import near


def area(r: float) -> float:
    """The area of a circle."""
    return math.pi * r**2


def helped(r):
    """Calls another one."""
    return area(r)


def relative(r):
    """Needs its package."""
    return near.f(r)


class Circle:
    def area(self):
        """A method."""
        return 1


def plain(values, key=lambda v: -v):
    """Sorted."""
    return sorted(values, key=key)
'''


def test_functions_that_stand_alone_bring_their_imports(tmp_path: Path):
    (tmp_path / "a.py").write_text(ALONE)
    found = {function.name: function for function in standing_alone(tmp_path)}
    assert set(found) == {"area", "plain"}
    assert found["area"].head.startswith("import math\n\n\ndef area(r: float)")
    names: dict[str, Any] = {}
    exec(f"{found['area'].head}\n{found['area'].body}", names)  # noqa: S102
    assert names["area"](2) == pytest.approx(12.566, abs=1e-3)


def test_every_family_makes_functions_whose_examples_hold():
    made = list(small_functions(random.Random(7), Known([]), 6))
    assert len({function.name for function in made}) > 40
    for function in made:
        names: dict[str, Any] = {}
        source = f"{function.head}\n{function.body}"
        exec(source, names)  # noqa: S102
        for example in doctest.DocTestParser().get_examples(names[function.name].__doc__):
            assert repr(eval(example.source, names)) == example.want.strip(), source
        assert free_names(source.partition("\n\n\n")[2] or source) <= {"Dict", "List", "Optional", "Tuple"}


def test_what_solves_a_known_task_is_found_and_not_made():
    task = {"prompt": "def double(x):\n", "test": "def check(candidate):\n    assert candidate(4) == 8\n"}
    known = Known([task])
    assert known.solved("def twice(n):\n    return 2 * n\n", "twice")
    assert not known.solved("def same(n):\n    return n\n", "same")
    assert not known.solved("def endless(n):\n    while True:\n        pass\n", "endless")
    every = {"prompt": "", "test": "def check(candidate):\n    pass\n"}
    assert not list(small_functions(random.Random(7), Known([every]), 3))


def test_the_validation_tasks_hold_for_their_own_solutions():
    tasks = known_tasks()[-93:]
    assert all(task["task_id"].startswith("validation/") for task in tasks)
    for task in tasks:
        assert Known([task]).solved(task["prompt"] + task["canonical_solution"], task["entry_point"])


def test_what_is_added_changes_nothing_that_is_held_out():
    head = 'def own(x):\n    """Twice x."""'
    added = [Function("small", "own", "def own(x):", "Twice x.", head, "    return 2 * x")]
    before, after = (python_code.build(library(), more, n_test=20, n_parses=10)[0] for more in ((), added))
    assert all(before[part] == after[part] for part in ("valid", "test", "test_body"))
    assert [line["answer"] for line in after["train"] if line["group"] == "small"] == ["    return 2 * x"]
    near = [Function("small", "f", "def f(x):", "Twice.", head, before["test_body"][0]["completion"])]
    assert len(python_code.build(library(), near, n_test=20, n_parses=10)[0]["train"]) == len(before["train"])
