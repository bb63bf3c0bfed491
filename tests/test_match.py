"""When an answer counts as right."""

import pytest

from mbjax.engine.match import is_right, last_number

HEAD = 'def add(a, b):\n    """The sum."""\n'


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12+14=26;26-6=20", "20"),
        ("total 1,250.50 euros.", "1250.5"),
        ("5-7=-2", "-2"),
        ("10-3", "3"),  # a difference that nobody worked out is not minus three
        ("x = -4", "-4"),
        ("(2)-3", "3"),
        ("about 3.", "3"),
    ],
)
def test_the_last_number_is_found(text: str, number: str):
    assert last_number(text) == last_number(number) and str(last_number(number)) in (number, number + "0")


def test_no_number_is_never_right():
    assert last_number("none at all") is None
    assert not is_right("last_number", "none", "none") and not is_right("last_number", "", "3")


def test_numbers_agree_by_value_and_exact_texts_by_letter():
    assert is_right("last_number", "So it is 70.00", "70") and not is_right("last_number", "70 of 100", "70")
    assert is_right("exact", " Eye\n", "Eye") and not is_right("exact", "Eye.", "Eye")


@pytest.mark.parametrize(
    "text",
    [
        "    return a + b",
        "    return a + b\n",
        "def add(a, b):\n    return a + b",
        "Sure:\n```python\ndef add(a, b):\n    return a + b\n```\nIt adds.",
        "```\n    return a + b\n```",
    ],
)
def test_a_body_a_function_or_a_fenced_block_parses(text: str):
    assert is_right("parses", text, "", HEAD)


@pytest.mark.parametrize("text", ["", "\n", "return a + b", "    return a +", "Sure", "Sure, here it is.", "x = 1"])
def test_what_is_no_body_does_not_parse(text: str):
    assert not is_right("parses", text, "", HEAD)


def test_only_what_the_limit_cut_off_loses_its_last_line():
    text = "    c = a\n    if c"
    assert is_right("parses", text, "", HEAD, cut_off=True) and not is_right("parses", text, "", HEAD)
    assert not is_right("parses", "    return a", "", HEAD, cut_off=True)
