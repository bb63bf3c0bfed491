"""The eleven families of sums and word problems: their generators' settings, and a short worked solution of each.

A solution is a line of small steps that ends in the answer, for a small model adds up what it has written down, not
what it would have to keep in mind. Written without spaces, where every digit is a token, it fits into 64 tokens.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gsm_steps import shortened

LONGEST = 61  # tokens of a worked solution by `roughly_tokens`; evaluation reads 64

Entry = Mapping[str, Any]  # of reasoning-gym: question, answer, metadata


@dataclass(frozen=True)
class Family:
    """`slots` are what the phrasings are filled with; `solve` gives the worked solution, or None where there is none."""

    settings: Mapping[str, Any]
    slots: Callable[[Entry], dict[str, str]]
    solve: Callable[[Entry], str | None]


def roughly_tokens(text: str) -> int:
    """Digits, signs and words: what a tokenizer that splits numbers into digits makes of such a line."""
    return len(re.findall(r"\d|[^\s\w]|[A-Za-z]+", text))


def running(expression: str) -> str | None:
    """A spaced expression worked out in steps: brackets, products, then from left to right: "6*4=24;2+24=26".

    None for one that is written in another way, as with a sign before a bracket.
    """
    tokens = expression.split()
    if not all(re.fullmatch(r"-?\d+|[-+*()]", token) for token in tokens):
        return None
    steps: list[str] = []
    while "(" in tokens:
        end = tokens.index(")")
        start = end - tokens[:end][::-1].index("(") - 1
        tokens[start : end + 1] = [_reduce(tokens[start + 1 : end], steps)]
    value = _reduce(tokens, steps)
    return ";".join(steps) or value


def _reduce(tokens: list[str], steps: list[str]) -> str:
    """The value of numbers and operators without brackets; what was done goes to `steps`."""
    for operators in ("*", "+-"):
        at = 1
        while at < len(tokens):
            if tokens[at] not in operators:
                at += 2
                continue
            left, sign, right = tokens[at - 1], tokens[at], tokens[at + 1]
            value = _value(int(left), sign, int(right))
            product = sign == "*" and min(abs(int(left)), abs(int(right))) > 9
            steps.append(times(int(left), int(right)) if product else f"{left}{sign}{right}={value}")
            tokens[at - 1 : at + 2] = [str(value)]
    return tokens[0]


def _value(left: int, sign: str, right: int) -> int:
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def times(left: int, right: int) -> str:
    """A product by the tens and ones of its second factor: "26*40=1040;26*7=182;1040+182=1222"."""
    tens, ones = right // 10 * 10, right % 10
    if not tens or not ones or abs(left) < 10:
        return f"{left}*{right}={left * right}"
    return f"{left}*{tens}={left * tens};{left}*{ones}={left * ones};{left * tens}+{left * ones}={left * right}"


def remainders(a: int, b: int) -> tuple[list[str], int]:
    """The divisions of Euclid's algorithm, larger number first, and the divisor; a remainder of 1 ends it, too."""
    a, b, steps = max(a, b), min(a, b), []
    while b > 1:
        steps.append(f"{a}%{b}={a % b}")
        a, b = b, a % b
    return steps, 1 if b == 1 else a


def _gcd(entry: Entry) -> str:
    steps, divisor = remainders(*entry["metadata"]["numbers"])
    return f"{';'.join(steps)};GCD {divisor}"


def _lcm(entry: Entry) -> str:
    a, b = entry["metadata"]["numbers"]
    steps, divisor = remainders(a, b)
    if divisor > 1:
        steps.append(f"{min(a, b)}/{divisor}={min(a, b) // divisor}")
    return ";".join([*steps, times(max(a, b), min(a, b) // divisor)])


def _legs(entry: Entry) -> str:
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    counts = [(n, ANIMALS[animal]) for animal, n in entry["metadata"]["animals"].items()]
    steps, total = [], 0
    for i, (n, legs) in enumerate(counts):
        steps.append(f"{n}*{legs}={n * legs}")
        if i:
            steps.append(f"{total}+{n * legs}={total + n * legs}")
        total += n * legs
    return ";".join(steps)


def _bits(entry: Entry) -> str:
    number, steps = entry["metadata"]["number"], []
    while number:
        steps.append(f"{number}:{number % 2}")
        number //= 2
    return f"{' '.join(steps)} total {entry['answer']}"


def _sequence(entry: Entry) -> str:
    *known, last = entry["metadata"]["sequence"]
    rule = entry["metadata"]["rule"]
    if rule == "add previous":
        return f"Rule: {rule}. {known[-2]}+{known[-1]}={last}"
    if match := re.fullmatch(r"add (-?\d+)", rule):
        step = int(match[1])
        return f"Rule: {rule}. {known[-1]}{'+' if step >= 0 else '-'}{abs(step)}={last}"
    return f"Rule: {rule}. Next: {last}"


def _letters(entry: Entry) -> str:
    letter, words = entry["metadata"]["target_letter"], entry["metadata"]["span"]
    counts = [f"{word}:{word.lower().count(letter)}" for word in words]
    return f"{' '.join(counts)} total {entry['answer']}"


def _equation(entry: Entry) -> str | None:
    x, (left, right) = entry["metadata"]["variable"], entry["metadata"]["equation"].split(" = ")
    result, steps = int(right), []
    if match := re.fullmatch(rf"(?:(\d+)\*)?{x}(?: ([-+]) (\d+))?", left):
        factor, sign, shift = int(match[1] or 1), match[2], int(match[3] or 0)
        if sign:
            moved = result - shift if sign == "+" else result + shift
            steps.append(f"{match[0].split(' ')[0]}={result}{'-' if sign == '+' else '+'}{shift}={moved}")
            result = moved
    elif match := re.fullmatch(rf"(\d+) - (?:(\d+)\*)?{x}", left):
        shift, factor = int(match[1]), int(match[2] or 1)
        steps.append(f"{left.split(' - ')[1]}={shift}-{result}={shift - result}".replace("--", "+"))
        result = shift - result
    else:
        return None
    if factor != 1:
        steps.append(f"{x}={result}/{factor}={result // factor}")
    return ";".join(steps) or f"{x}={result}"


def _expression(entry: Entry) -> dict[str, str]:
    return {"e": entry["metadata"]["expression"]}


def _two_numbers(entry: Entry) -> dict[str, str]:
    a, b = entry["metadata"]["numbers"]
    return {"a": str(a), "b": str(b)}


def _animals(entry: Entry) -> dict[str, str]:
    return {"animals": entry["question"].split("if you have ")[1].split("?")[0]}


FAMILIES: dict[str, Family] = {
    "gsm_symbolic": Family(
        {},
        lambda e: {"q": e["question"].split(" Give the result as")[0].strip()},
        lambda e: shortened(e["metadata"]["answer_cot"], e["answer"]),
    ),
    "chain_sum": Family({"max_terms": 4, "max_digits": 2}, _expression, lambda e: running(e["metadata"]["expression"])),
    "basic_arithmetic": Family(
        {"max_terms": 3, "max_digits": 2, "operators": ("+", "-", "*"), "allow_negation": False},
        _expression,
        lambda e: running(e["metadata"]["expression"]),
    ),
    "products": Family({"max_digits": 2}, _expression, lambda e: running(e["metadata"]["expression"])),
    "gcd": Family({"max_value": 100}, _two_numbers, _gcd),
    "lcm": Family({"max_value": 50}, _two_numbers, _lcm),
    "leg_counting": Family({"min_animals": 2, "max_animals": 4, "max_instances": 12}, _animals, _legs),
    "count_bits": Family({"max_n": 1023}, lambda e: {"n": str(e["metadata"]["number"])}, _bits),
    "number_sequence": Family({"max_complexity": 1}, lambda e: {"s": e["question"].removesuffix(", ?")}, _sequence),
    "letter_counting": Family(
        {"min_words": 3, "max_words": 7},
        lambda e: {"letter": e["metadata"]["target_letter"], "text": " ".join(e["metadata"]["span"])},
        _letters,
    ),
    "simple_equations": Family(
        {
            "min_terms": 2,
            "max_terms": 2,
            "max_value": 15,
            "operators": ("+", "-", "*"),
            "operators_weights": [0.46, 0.46, 0.08],
        },
        lambda e: {"x": e["metadata"]["variable"], "e": e["metadata"]["equation"]},
        _equation,
    ),
}
