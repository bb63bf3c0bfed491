"""Families of small functions: what is taken, what is made of it and what comes out, each in words and in Python."""

from collections.abc import Iterator
from dataclasses import dataclass

Input = str  # a kind of arguments, see small_functions.py


@dataclass(frozen=True)
class Small:
    """One function: `says` are sentences that ask for it, `bodies` ways to write it, `takes` (name, kind) pairs."""

    names: tuple[str, ...]
    takes: tuple[tuple[str, Input], ...]
    gives: str
    says: tuple[str, ...]
    bodies: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A word for the name, a phrase with the noun in it, the expression, and a further argument that it needs."""

    word: str
    phrase: str
    code: str
    needs: tuple[tuple[str, Input], ...] = ()


K: tuple[tuple[str, Input], ...] = (("k", "small"),)
PREDICATES = (
    Part("", "{s}", ""),
    Part("positive", "positive {s}", "{x} > 0"),
    Part("negative", "negative {s}", "{x} < 0"),
    Part("nonzero", "{s} that are not zero", "{x} != 0"),
    Part("even", "even {s}", "{x} % 2 == 0"),
    Part("odd", "odd {s}", "{x} % 2 == 1"),
    Part("above", "{s} greater than k", "{x} > k", K),
    Part("below", "{s} less than k", "{x} < k", K),
    Part("at_least", "{s} that are k or more", "{x} >= k", K),
    Part("multiples", "{s} divisible by k", "{x} % k == 0", K),
    Part("not_multiples", "{s} that k does not divide", "{x} % k != 0", K),
    Part("other_than", "{s} that differ from k", "{x} != k", K),
    Part("long", "{s} of two or more digits", "abs({x}) >= 10"),
    Part("one_digit", "{s} of one digit", "-10 < {x} < 10"),
    Part("ending_in", "{s} whose last digit is k", "abs({x}) % 10 == k", K),
    Part("between", "{s} from low to high", "low <= {x} <= high", (("low", "small"), ("high", "large"))),
    Part("even_positive", "{s} that are both positive and even", "{x} > 0 and {x} % 2 == 0"),
    Part("odd_or_negative", "{s} that are odd or negative", "{x} % 2 == 1 or {x} < 0"),
)
MAPPINGS = (
    Part("", "{s}", "{x}"),
    Part("squares", "squares of the {s}", "{x} ** 2"),
    Part("cubes", "cubes of the {s}", "{x} ** 3"),
    Part("doubles", "doubles of the {s}", "2 * {x}"),
    Part("triples", "three times each of the {s}", "3 * {x}"),
    Part("halves", "halves, rounded down, of the {s}", "{x} // 2"),
    Part("sizes", "absolute values of the {s}", "abs({x})"),
    Part("opposites", "opposites of the {s}", "-{x}"),
    Part("successors", "successors of the {s}", "{x} + 1"),
    Part("last_digits", "last digits of the {s}", "abs({x}) % 10"),
    Part("digit_sums", "digit sums of the {s}", "sum(int(d) for d in str(abs({x})))"),
    Part("shifted", "{s}, each increased by n,", "{x} + n", (("n", "small"),)),
)
CHARACTERS = (
    Part("vowels", "vowels", "{x}.lower() in 'aeiou'"),
    Part("consonants", "consonants", "{x}.isalpha() and {x}.lower() not in 'aeiou'"),
    Part("digits", "digits", "{x}.isdigit()"),
    Part("letters", "letters", "{x}.isalpha()"),
    Part("capitals", "upper-case letters", "{x}.isupper()"),
    Part("small_letters", "lower-case letters", "{x}.islower()"),
    Part("spaces", "spaces", "{x} == ' '"),
    Part("symbols", "characters that are neither letters nor digits", "not {x}.isalnum()"),
    Part("allowed", "characters that are in allowed", "{x} in allowed", (("allowed", "letters"),)),
    Part("others", "characters that are not in banned", "{x} not in banned", (("banned", "letters"),)),
)
WORDS = (
    Part("", "{s}", ""),
    Part("long", "{s} with more than k letters", "len({x}) > k", K),
    Part("short", "{s} with at most k letters", "len({x}) <= k", K),
    Part("even_length", "{s} of even length", "len({x}) % 2 == 0"),
    Part("starting_with", "{s} that start with the letter", "{x}.startswith(letter)", (("letter", "letter"),)),
    Part("ending_with", "{s} that end with the letter", "{x}.endswith(letter)", (("letter", "letter"),)),
    Part("containing", "{s} that contain the letter", "letter in {x}", (("letter", "letter"),)),
    Part("without", "{s} that do not contain the letter", "letter not in {x}", (("letter", "letter"),)),
    Part("capitalised", "{s} that begin with a capital", "{x}[0].isupper()"),
    Part("doubled", "{s} whose first and last letters are equal", "{x}[0] == {x}[-1]"),
)
WORD_MAPPINGS = (
    Part("", "{s}", "{x}"),
    Part("reversed", "{s}, each spelled backwards,", "{x}[::-1]"),
    Part("upper", "{s} in upper case", "{x}.upper()"),
    Part("capitalised", "{s} with a capital first letter", "{x}.capitalize()"),
    Part("first_letters", "first letters of the {s}", "{x}[0]"),
    Part("last_letters", "last letters of the {s}", "{x}[-1]"),
    Part("doubled", "{s}, each written twice,", "{x} * 2"),
    Part("trimmed", "{s} without their last letters", "{x}[:-1]"),
)


def looped(start: str, each: str, end: str, over: str, keep: str) -> str:
    """A body with a loop: `each` for what `keep` keeps."""
    inner = f"        if {keep}:\n            {each}\n" if keep else f"        {each}\n"
    return f"{start}    for {over}:\n{inner}    {end}"


def _reductions(made: str, keep: str, over: str) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """(word, sentence with {what}, type, bodies) of what may come out of numbers."""
    some = f" for {over}" + (f" if {keep}" if keep else "")
    loop = lambda start, each, end: looped(start, each, end, over, keep)
    yield (
        "list",
        "Return a list of the {what}.",
        "List[int]",
        (
            f"    return [{made}{some}]",
            loop("    result = []\n", f"result.append({made})", "return result"),
        ),
    )
    yield (
        "sum",
        "Return the sum of the {what}.",
        "int",
        (
            f"    return sum({made}{some})",
            loop("    total = 0\n", f"total += {made}", "return total"),
        ),
    )
    yield (
        "product",
        "Return the product of the {what}, 1 if there are none.",
        "int",
        (loop("    product = 1\n", f"product *= {made}", "return product"),),
    )
    yield (
        "largest",
        "Return the largest of the {what}, or None if there are none.",
        "Optional[int]",
        (
            f"    found = [{made}{some}]\n    return max(found) if found else None",
            f"    return max(({made}{some}), default=None)",
        ),
    )
    yield (
        "smallest",
        "Return the smallest of the {what}, or None if there are none.",
        "Optional[int]",
        (f"    found = [{made}{some}]\n    if not found:\n        return None\n    return min(found)",),
    )
    yield (
        "average",
        "Return the average of the {what}, or 0 if there are none.",
        "float",
        (f"    found = [{made}{some}]\n    if not found:\n        return 0\n    return sum(found) / len(found)",),
    )
    yield "sorted", "Return the {what} in ascending order.", "List[int]", (f"    return sorted({made}{some})",)
    yield (
        "descending",
        "Return the {what} from the largest to the smallest.",
        "List[int]",
        (f"    return sorted([{made}{some}], reverse=True)",),
    )
    yield (
        "distinct",
        "Return the {what} without repetitions, in ascending order.",
        "List[int]",
        (
            f"    return sorted(set({made}{some}))",
            loop("    seen = []\n", f"seen.append({made})", "return sorted(set(seen))"),
        ),
    )
    yield (
        "text",
        "Return the {what} as a text with commas between them.",
        "str",
        (f"    return ','.join(str({made}){some})",),
    )
    yield (
        "backwards",
        "Return the {what} in reverse order.",
        "List[int]",
        (
            f"    return [{made}{some}][::-1]",
            loop("    result = []\n", f"result.insert(0, {made})", "return result"),
        ),
    )


def _choices(keep: str, over: str, item: str) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """The same for what is only chosen, not changed."""
    yield (
        "count",
        "Count the {what}.",
        "int",
        (
            f"    return sum(1 for {over} if {keep})",
            f"    return len([{item} for {over} if {keep}])",
            looped("    count = 0\n", "count += 1", "return count", over, keep),
        ),
    )
    yield (
        "any",
        "Check whether there are any {what}.",
        "bool",
        (
            f"    return any({keep} for {over})",
            f"    for {over}:\n        if {keep}:\n            return True\n    return False",
        ),
    )
    yield (
        "first",
        "Return the first of the {what}, or None if there are none.",
        "Optional[{t}]",
        (f"    for {over}:\n        if {keep}:\n            return {item}\n    return None",),
    )
    yield (
        "last",
        "Return the last of the {what}, or None if there are none.",
        "Optional[{t}]",
        (looped("    last = None\n", f"last = {item}", "return last", over, keep),),
    )


def number_lists() -> Iterator[Small]:
    for predicate in PREDICATES:
        for mapping in MAPPINGS:
            made, keep = mapping.code.format(x="x"), predicate.code.format(x="x")
            what = mapping.phrase.format(s=predicate.phrase.format(s="numbers"))
            found = list(_reductions(made, keep, "x in numbers"))
            if not mapping.word and predicate.word:
                found += _choices(keep, "x in numbers", "x")
            for word, sentence, gives, bodies in found:
                takes = (("numbers", "integers"), *predicate.needs, *mapping.needs)
                said = sentence.format(what=what)
                says = (said, f"Given a list of integers, {said[0].lower()}{said[1:]}", f"You are given a list of integers.\n    {said}")  # fmt: skip
                yield Small(
                    _named(word, mapping.word, predicate.word, "numbers"), takes, gives.format(t="int"), says, bodies
                )


def texts() -> Iterator[Small]:
    for kind in CHARACTERS:
        keep = kind.code.format(x="c")
        takes = (("text", "text"), *kind.needs)
        rows = [*_choices(keep, "c in text", "c")]
        rows.append(("keep", "Return only the {what} of the text.", "str",
                     (f"    return ''.join(c for c in text if {keep})",
                      looped("    result = ''\n", "result += c", "return result", "c in text", keep))))  # fmt: skip
        rows.append(("list", "Return a list of the {what} of the text.", "List[str]",
                     (f"    return [c for c in text if {keep}]",)))  # fmt: skip
        rows.append(("distinct", "Return the different {what} of the text, sorted.", "List[str]",
                     (f"    return sorted({{c for c in text if {keep}}})",
                      f"    return sorted(set(c for c in text if {keep}))")))  # fmt: skip
        rows.append(("places", "Return the positions of the {what} in the text.", "List[int]",
                     (f"    return [i for i, c in enumerate(text) if {keep}]",
                      f"    result = []\n    for i in range(len(text)):\n        c = text[i]\n        if {keep}:\n            result.append(i)\n    return result")))  # fmt: skip
        rows.append(("mask", "Replace each of the {what} in the text by a star.", "str",
                     (f"    return ''.join('*' if {keep} else c for c in text)",
                      f"    result = ''\n    for c in text:\n        if {keep}:\n            result += '*'\n        else:\n            result += c\n    return result")))  # fmt: skip
        rows.append(("double", "Write each of the {what} in the text twice.", "str",
                     (f"    return ''.join(c * 2 if {keep} else c for c in text)",)))  # fmt: skip
        rows.append(("share", "Return the share of the {what} in the text, 0 if it is empty.", "float",
                     (f"    if not text:\n        return 0\n    return sum(1 for c in text if {keep}) / len(text)",)))  # fmt: skip
        rows.append(("tally", "Return a dictionary that says how often each of the {what} occurs.", "Dict[str, int]",
                     (f"    counts = {{}}\n    for c in text:\n        if {keep}:\n            counts[c] = counts.get(c, 0) + 1\n    return counts",)))  # fmt: skip
        for word, sentence, gives, bodies in rows:
            said = sentence.format(what=kind.phrase)
            says = (said, f"Given a string, {said[0].lower()}{said[1:]}")
            yield Small(_named(word, "", kind.word, "text"), takes, gives.format(t="str"), says, bodies)


def word_lists() -> Iterator[Small]:
    for kind in WORDS:
        for mapping in WORD_MAPPINGS:
            for source in ("text.split()", "words"):
                made, keep = mapping.code.format(x="word"), kind.code.format(x="word")
                takes = (("text", "sentence") if source != "words" else ("words", "words"), *kind.needs)
                over = f"word in {source}"
                some = f" for {over}" + (f" if {keep}" if keep else "")
                what = mapping.phrase.format(s=kind.phrase.format(s="words"))
                rows = [
                    ("list", "Return a list of the {what}.", "List[str]", (
                        f"    return [{made}{some}]",
                        looped("    result = []\n", f"result.append({made})", "return result", over, keep))),
                    ("join", "Return the {what} joined by spaces.", "str", (f"    return ' '.join({made}{some})",)),
                    ("sorted", "Return the {what} in alphabetical order.", "List[str]", (f"    return sorted({made}{some})",)),
                    ("lengths", "Return a dictionary from each of the {what} to its length.", "Dict[str, int]", (
                        f"    return {{{made}: len({made}){some}}}",)),
                    ("by_length", "Return the {what} sorted by their length.", "List[str]", (
                        f"    return sorted([{made}{some}], key=len)",)),
                ]  # fmt: skip
                if not mapping.word and keep:
                    rows += _choices(keep, over, "word")
                if not mapping.word:
                    rows.append(("longest", "Return the longest of the {what}, or an empty string if there are none.", "str",
                                 (f"    longest = ''\n    for {over}:\n        if {keep + ' and ' if keep else ''}len(word) > len(longest):\n            longest = word\n    return longest",
                                  f"    return max([word{some}], key=len, default='')")))  # fmt: skip
                for word, sentence, gives, bodies in rows:
                    said = sentence.format(what=what)
                    of = "text" if source != "words" else "list of words"
                    says = (said, f"Given a {of}, {said[0].lower()}{said[1:]}")
                    yield Small(
                        _named(word, mapping.word, kind.word, "words"), takes, gives.format(t="str"), says, bodies
                    )


def _named(word: str, made: str, kept: str, noun: str) -> tuple[str, ...]:
    """Ways to call it."""
    parts = [part for part in (kept, made) if part]
    return (
        "_".join([word, *(parts or [noun])]),
        "_".join([word, "of", *(reversed(parts) if parts else [noun])]),
        "_".join([*(parts or [noun]), word]),
    )
