"""Worked solutions of gsm_symbolic cut down to their equations, each of which is checked by computing it."""

import re
from fractions import Fraction

_TOKEN = re.compile(r"\d[\d,]*\.?\d*%?|[-+*/×()=]|\bx\b")
_PER = re.compile(r"\s*/\s*[A-Za-z][A-Za-z ]*?(?=[\s*+,.;)=-]|$)")  # the unit "orders/day" is no division
_OPERATORS = {"×": "*", "x": "*"}


def equations(worked: str) -> list[tuple[str, str]]:
    """(left side, right side) of every true equation in the text, in its order; units and words are left out.

    Of each line, the longest run of numbers and operators before an equals sign that computes to the number behind it
    is taken, so that "40 cards + 2 * 3 cards = 46 cards" gives ("40+2*3", "46").
    """
    found = []
    for line in worked.split("\n"):
        tokens = [str(_OPERATORS.get(token, token)) for token in _TOKEN.findall(_PER.sub(" ", line))]
        for at, token in enumerate(tokens):
            if token == "=" and 0 < at < len(tokens) - 1:
                equation = _longest(tokens[:at], tokens[at + 1])
                if equation is not None and equation not in found:
                    found.append(equation)
    return found


def _longest(left: list[str], right: str) -> tuple[str, str] | None:
    value = _number(right)
    start = max((i + 1 for i, token in enumerate(left) if token == "="), default=0)
    for begin in range(start, len(left) - 2):
        side = left[begin:]
        if value is not None and compute(side) == value:
            return "".join(token.replace(",", "") for token in side), right.replace(",", "").rstrip(".")
    return None


def _number(token: str) -> Fraction | None:
    text = token.replace(",", "").rstrip(".")
    try:
        return Fraction(text[:-1]) / 100 if text.endswith("%") else Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None


def compute(tokens: list[str]) -> Fraction | None:
    """The value of numbers, the four operators and parentheses; None where they are no expression."""
    rest = list(tokens)

    def factor() -> Fraction:
        token = rest.pop(0)
        if token == "(":
            value = total()
            if rest.pop(0) != ")":
                raise ValueError
            return value
        value = _number(token)
        if value is None:
            raise ValueError
        return value

    def term() -> Fraction:
        value = factor()
        while rest and rest[0] in "*/":
            value = value * factor() if rest.pop(0) == "*" else value / factor()
        return value

    def total() -> Fraction:
        value = term()
        while rest and rest[0] in "+-":
            value = value + term() if rest.pop(0) == "+" else value - term()
        return value

    try:
        value = total()
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return None if rest else value


def shortened(worked: str, answer: str) -> str | None:
    """The equations in one line, ending in the answer; None where they do not lead to it."""
    steps = equations(worked)
    if not steps or _number(steps[-1][1]) != _number(answer):
        return None
    text = ";".join(f"{left}={right}" for left, right in steps[:-1])
    left, _ = steps[-1]
    return f"{text};{left}={answer}" if text else f"{left}={answer}"
