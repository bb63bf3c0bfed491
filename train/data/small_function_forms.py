"""More families of small functions: two lists, neighbours, digits, divisors, sequences, dictionaries, matrices, formulas."""

from collections.abc import Iterator

from small_function_families import MAPPINGS, PREDICATES, Small, looped

INTEGERS = (("numbers", "integers"),)
TWO = (("first", "integers"), ("second", "integers"))
PLAIN = [part for part in PREDICATES if len(part.needs) < 2 and part.word]


def pairs_of_lists() -> Iterator[Small]:
    joint = {"sums": "a + b", "differences": "a - b", "products": "a * b", "maxima": "max(a, b)", "minima": "min(a, b)",
             "distances": "abs(a - b)", "means": "(a + b) / 2", "pairs": "(a, b)"}  # fmt: skip
    for word, code in joint.items():
        says = (f"Return the {word} of the numbers at the same positions of two lists.",
                f"Given two lists, return a list of the {word} of first[i] and second[i].")  # fmt: skip
        gives = {"means": "List[float]", "pairs": "List[Tuple[int, int]]"}.get(word, "List[int]")
        bodies = (f"    return [{code} for a, b in zip(first, second)]",
                  f"    result = []\n    for a, b in zip(first, second):\n        result.append({code})\n    return result",
                  f"    result = []\n    for i in range(min(len(first), len(second))):\n        a, b = first[i], second[i]\n        result.append({code})\n    return result")  # fmt: skip
        yield Small((f"pairwise_{word}", f"{word}_of_lists", f"list_{word}"), TWO, gives, says, bodies)
    relations = {"equal": "a == b", "smaller": "a < b", "larger": "a > b", "of_like_parity": "(a - b) % 2 == 0"}
    for word, code in relations.items():
        what = f"first[i] and second[i] are {'equal' if word == 'equal' else 'both even or both odd'}"
        if word in ("smaller", "larger"):
            what = f"first[i] is {word} than second[i]"
        yield Small((f"count_{word}", f"{word}_count"), TWO, "int", (f"Count the positions i where {what}.",),
                    (f"    return sum(1 for a, b in zip(first, second) if {code})",
                     f"    count = 0\n    for a, b in zip(first, second):\n        if {code}:\n            count += 1\n    return count"))  # fmt: skip
        yield Small((f"positions_{word}", f"where_{word}"), TWO, "List[int]", (f"Return the positions i where {what}.",),
                    (f"    return [i for i, (a, b) in enumerate(zip(first, second)) if {code}]",))  # fmt: skip
        yield Small((f"all_{word}", f"is_{word}"), TWO, "bool", (f"Return True if at every position i {what}.",),
                    (f"    return all({code} for a, b in zip(first, second))",
                     f"    for a, b in zip(first, second):\n        if not ({code}):\n            return False\n    return True"))  # fmt: skip
    sets = {"in_both": ("that are in both lists", "x in second"), "only_first": ("of first that are not in second", "x not in second")}  # fmt: skip
    for word, (what, code) in sets.items():
        for kept in PLAIN[:6]:
            more = f" and {kept.code.format(x='x')}"
            yield Small((f"{kept.word}_{word}", f"{word}_{kept.word}"), (*TWO, *kept.needs), "List[int]",
                        (f"Return the {kept.phrase.format(s='numbers')} {what}, in the order of first.",),
                        (f"    return [x for x in first if {code}{more}]",
                         f"    result = []\n    for x in first:\n        if {code}{more}:\n            result.append(x)\n    return result"))  # fmt: skip


def neighbours() -> Iterator[Small]:
    relations = {"rises": ("b > a", "larger than the number before"), "falls": ("b < a", "smaller than the number before"),
                 "repeats": ("b == a", "equal to the number before"), "sign_changes": ("a * b < 0", "of the other sign than the number before"),
                 "big_jumps": ("abs(b - a) > k", "more than k away from the number before"), "doublings": ("b == 2 * a", "twice the number before")}  # fmt: skip
    for word, (code, what) in relations.items():
        takes = (*INTEGERS, *((("k", "small"),) if "k" in code.split() else ()))
        yield Small((f"count_{word}", f"number_of_{word}"), takes, "int", (f"Count the numbers that are {what}.",),
                    (f"    return sum(1 for a, b in zip(numbers, numbers[1:]) if {code})",
                     f"    count = 0\n    for i in range(1, len(numbers)):\n        a, b = numbers[i - 1], numbers[i]\n        if {code}:\n            count += 1\n    return count"))  # fmt: skip
        yield Small((f"find_{word}", f"{word}_positions"), takes, "List[int]", (f"Return the positions of the numbers that are {what}.",),
                    (f"    return [i for i, (a, b) in enumerate(zip(numbers, numbers[1:]), 1) if {code}]",
                     f"    result = []\n    for i in range(1, len(numbers)):\n        a, b = numbers[i - 1], numbers[i]\n        if {code}:\n            result.append(i)\n    return result"))  # fmt: skip
        yield Small((f"only_{word}", f"all_{word}"), takes, "bool", (f"Return True if every number but the first is {what}.",),
                    (f"    return all({code} for a, b in zip(numbers, numbers[1:]))",
                     f"    for a, b in zip(numbers, numbers[1:]):\n        if not ({code}):\n            return False\n    return True"))  # fmt: skip
    windows = {"sum": ("sum({w})", "sums"), "largest": ("max({w})", "largest numbers"), "smallest": ("min({w})", "smallest numbers"),
               "mean": ("sum({w}) / size", "averages"), "spread": ("max({w}) - min({w})", "differences of the largest and smallest")}  # fmt: skip
    for word, (code, what) in windows.items():
        made = code.format(w="numbers[i:i + size]")
        yield Small((f"window_{word}", f"moving_{word}", f"sliding_{word}"), (*INTEGERS, ("size", "small")), "List[float]" if word == "mean" else "List[int]",
                    (f"Return the {what} of each size neighbouring numbers.", f"Given a list of integers and a window size, return the {what} of all windows."),
                    (f"    return [{made} for i in range(len(numbers) - size + 1)]",
                     f"    result = []\n    for i in range(len(numbers) - size + 1):\n        result.append({made})\n    return result"))  # fmt: skip
        blocks = code.format(w="block").replace("size", "len(block)")
        yield Small((f"block_{word}", f"{word}_of_blocks"), (*INTEGERS, ("size", "small")), "List[float]" if word == "mean" else "List[int]",
                    (f"Cut the list into blocks of the given size and return the {what} of the blocks; the last may be shorter.",),
                    (f"    result = []\n    for i in range(0, len(numbers), size):\n        block = numbers[i:i + size]\n        result.append({blocks})\n    return result",))  # fmt: skip


def digits_and_divisors() -> Iterator[Small]:
    sources = {"digits": ("digits of n", "int(d)", "d in str(n)", "natural"), "divisors": ("positive divisors of n", "d", "d in range(1, n + 1)", "natural"),
               "range": ("numbers from 1 to n", "d", "d in range(1, n + 1)", "natural"), "between": ("numbers from a to b, both included,", "d", "d in range(a, b + 1)", "two")}  # fmt: skip
    ends = {"sum": ("the sum of the", "int", "sum({s})"), "list": ("a list of the", "List[int]", "[{s}]"),
            "count": ("how many there are of the", "int", "len([{s}])"), "largest": ("the largest, or 0 if there is none, of the", "int", "max([{s}], default=0)"),
            "smallest": ("the smallest, or 0 if there is none, of the", "int", "min([{s}], default=0)"), "descending": ("in descending order the", "List[int]", "sorted([{s}], reverse=True)")}  # fmt: skip
    for source, (what, item, over, kind) in sources.items():
        takes = (("n", kind),) if kind == "natural" else (("a", "small"), ("b", "large"))
        for kept in PREDICATES:
            if kept.word in (
                "positive",
                "negative",
                "long",
                "one_digit",
                "even_positive",
                "odd_or_negative",
                "nonzero",
            ):
                continue
            checks = (["n % d == 0"] if source == "divisors" else []) + (
                [kept.code.format(x=item)] if kept.code else []
            )
            keep = " and ".join(checks)
            for word, (said, gives, code) in ends.items():
                names = (f"{word}_{kept.word}_{source}".replace("__", "_"), f"{kept.word}_{source}_{word}".lstrip("_"))
                bodies = [f"    return {code.format(s=f'{item} for {over}' + (f' if {keep}' if keep else ''))}"]
                if word == "sum":
                    bodies.append(looped("    total = 0\n", f"total += {item}", "return total", over, keep))
                if word == "list":
                    bodies.append(looped("    result = []\n", f"result.append({item})", "return result", over, keep))
                if word == "count":
                    bodies.append(looped("    count = 0\n", "count += 1", "return count", over, keep))
                yield Small(names, (*takes, *kept.needs), gives, (f"Return {said} {kept.phrase.format(s=what)}.",), tuple(bodies))  # fmt: skip


def sequences() -> Iterator[Small]:
    for a, b in ((1, 2), (2, 1), (3, -1), (1, -1), (2, -1), (1, 3), (2, 3), (3, 2)):
        for x, y in ((0, 1), (1, 1), (2, 1), (1, 3)):
            step = f"{a} * s(n - 1) {'+' if b > 0 else '-'} {abs(b)} * s(n - 2)".replace("1 * s", "s")
            value = step.replace("s(n - 1)", "y").replace("s(n - 2)", "x")
            says = (f"Return s(n), where s(0) = {x}, s(1) = {y} and s(n) = {step}.",
                    f"The sequence s begins with s(0) = {x} and s(1) = {y}; then s(n) = {step}.\n    Return its n-th element.")  # fmt: skip
            yield Small(("sequence", "s", "nth_element", "term"), (("n", "natural"),), "int", says,
                        (f"    x, y = {x}, {y}\n    for _ in range(n):\n        x, y = y, {value}\n    return x",
                         f"    values = [{x}, {y}]\n    for i in range(2, n + 1):\n        values.append({step.replace('s(n - 1)', 'values[i - 1]').replace('s(n - 2)', 'values[i - 2]')})\n    return values[n]"))  # fmt: skip
            yield Small(("first_elements", "sequence_list"), (("n", "natural"),), "List[int]",
                        (f"Return the first n elements of the sequence with s(0) = {x}, s(1) = {y} and s(n) = {step}.",),
                        (f"    result = []\n    x, y = {x}, {y}\n    for _ in range(n):\n        result.append(x)\n        x, y = y, {value}\n    return result",))  # fmt: skip
    for start, code, what in ((1, "2 * x + 1", "doubled and one added"), (3, "3 * x - 2", "tripled and two taken off"), (5, "x * x % 97", "squared, modulo 97"), (2, "x + 7", "increased by 7"), (1000, "x // 2", "halved, rounded down")):  # fmt: skip
        yield Small(("after_steps", "repeat_step"), (("n", "natural"),), "int", (f"Start with {start}. In each of n steps the number is {what}. Return the result.",),
                    (f"    x = {start}\n    for _ in range(n):\n        x = {code}\n    return x",))  # fmt: skip
    for word, code, what in (("halve", "n //= 2", "halve it, rounding down"), ("third", "n //= 3", "divide it by three, rounding down"), ("tenth", "n //= 10", "take off its last digit"), ("less", "n -= 7", "take 7 off")):  # fmt: skip
        yield Small((f"steps_{word}", f"count_{word}"), (("n", "natural"),), "int", (f"Count how often you must {what} until n is 0 or less.",),
                    (f"    steps = 0\n    while n > 0:\n        {code}\n        steps += 1\n    return steps",))  # fmt: skip


def dictionaries() -> Iterator[Small]:
    table = (("table", "table"),)
    for kept in PLAIN:
        keep, takes = kept.code.format(x="value"), (*table, *kept.needs)
        what = "entries whose values are " + kept.phrase.format(s="numbers")
        yield Small((f"keep_{kept.word}", f"{kept.word}_entries"), takes, "Dict[str, int]", (f"Return a dictionary of the {what}.",),
                    (f"    return {{key: value for key, value in table.items() if {keep}}}",
                     f"    result = {{}}\n    for key, value in table.items():\n        if {keep}:\n            result[key] = value\n    return result"))  # fmt: skip
        yield Small((f"keys_{kept.word}", f"{kept.word}_keys"), takes, "List[str]", (f"Return, sorted, the keys of the {what}.",),
                    (f"    return sorted(key for key, value in table.items() if {keep})",))  # fmt: skip
        yield Small((f"total_{kept.word}", f"sum_{kept.word}_values"), takes, "int", (f"Return the sum of the {kept.phrase.format(s='values')} of the dictionary.",),
                    (f"    return sum(value for value in table.values() if {keep})",
                     looped("    total = 0\n", "total += value", "return total", "value in table.values()", keep)))  # fmt: skip
        key = kept.code.format(x="x")
        yield Small((f"split_{kept.word}", f"partition_{kept.word}"), (*INTEGERS, *kept.needs), "Tuple[List[int], List[int]]",
                    (f"Return two lists: the {kept.phrase.format(s='numbers')}, and all others.",),
                    (f"    yes = [x for x in numbers if {key}]\n    no = [x for x in numbers if not ({key})]\n    return yes, no",
                     f"    yes, no = [], []\n    for x in numbers:\n        if {key}:\n            yes.append(x)\n        else:\n            no.append(x)\n    return yes, no"))  # fmt: skip
    for made in MAPPINGS[1:11]:
        code, what = made.code.format(x="x"), made.phrase.format(s="numbers")
        yield Small((f"group_by_{made.word}",), INTEGERS, "Dict[int, List[int]]", (f"Group the numbers by the {what}.",),
                    (f"    groups = {{}}\n    for x in numbers:\n        groups.setdefault({code}, []).append(x)\n    return groups",
                     f"    groups = {{}}\n    for x in numbers:\n        key = {code}\n        if key not in groups:\n            groups[key] = []\n        groups[key].append(x)\n    return groups"))  # fmt: skip
        yield Small((f"sort_by_{made.word}", f"order_by_{made.word}"), INTEGERS, "List[int]", (f"Sort the numbers by the {what}.",),
                    (f"    return sorted(numbers, key=lambda x: {code})",))  # fmt: skip
        yield Small((f"table_of_{made.word}",), INTEGERS, "Dict[int, int]", (f"Return a dictionary from each number to its entry among the {what}.",),
                    (f"    return {{x: {code} for x in numbers}}",))  # fmt: skip
        yield Small((f"best_by_{made.word}",), INTEGERS, "Optional[int]", (f"Return the number for which the entry among the {what} is largest; None for an empty list.",),
                    (f"    if not numbers:\n        return None\n    return max(numbers, key=lambda x: {code})",))  # fmt: skip


def matrices() -> Iterator[Small]:
    rows = (("matrix", "matrix"),)
    for word, code in {
        "sums": "sum({r})",
        "maxima": "max({r})",
        "minima": "min({r})",
        "means": "sum({r}) / len({r})",
        "spreads": "max({r}) - min({r})",
    }.items():
        kind = "List[float]" if word == "means" else "List[int]"
        yield Small((f"row_{word}", f"{word}_of_rows"), rows, kind, (f"Return the {word} of the rows of a matrix.",),
                    (f"    return [{code.format(r='row')} for row in matrix]",
                     f"    result = []\n    for row in matrix:\n        result.append({code.format(r='row')})\n    return result"))  # fmt: skip
        yield Small((f"column_{word}", f"{word}_of_columns"), rows, kind, (f"Return the {word} of the columns of a matrix.",),
                    (f"    return [{code.format(r='column')} for column in zip(*matrix)]",))  # fmt: skip
    for kept in PLAIN:
        keep, takes = kept.code.format(x="x"), (*rows, *kept.needs)
        yield Small((f"count_{kept.word}_cells", f"{kept.word}_in_matrix"), takes, "int", (f"Count the {kept.phrase.format(s='numbers')} in a matrix.",),
                    (f"    return sum(1 for row in matrix for x in row if {keep})",
                     f"    count = 0\n    for row in matrix:\n        for x in row:\n            if {keep}:\n                count += 1\n    return count"))  # fmt: skip
        yield Small((f"collect_{kept.word}_cells", f"matrix_{kept.word}"), takes, "List[int]", (f"Return a list of the {kept.phrase.format(s='numbers')} in a matrix, row by row.",),
                    (f"    return [x for row in matrix for x in row if {keep}]",
                     f"    result = []\n    for row in matrix:\n        for x in row:\n            if {keep}:\n                result.append(x)\n    return result"))  # fmt: skip
    for made in MAPPINGS[1:]:
        yield Small((f"matrix_{made.word}",), (*rows, *made.needs), "List[List[int]]", (f"Return a matrix of the {made.phrase.format(s='numbers')} of a matrix.".replace(", of", " of"),),
                    (f"    return [[{made.code.format(x='x')} for x in row] for row in matrix]",))  # fmt: skip


def rearrangements() -> Iterator[Small]:
    simple = {
        "drop_first": ("Return the list without its first k items.", "numbers[k:]"), "take_first": ("Return the first k items of the list.", "numbers[:k]"),
        "every_kth": ("Return every k-th item, beginning with the first.", "numbers[::k]"), "rotate_left": ("Move the first k items to the end of the list.", "numbers[k:] + numbers[:k]"),
        "reverse_first": ("Reverse the first k items and leave the rest.", "numbers[:k][::-1] + numbers[k:]"), "reverse_rest": ("Reverse all but the first k items.", "numbers[:k] + numbers[k:][::-1]"),
        "repeat_list": ("Return the list written k times in a row.", "numbers * k"), "largest_k": ("Return the k largest numbers in descending order.", "sorted(numbers, reverse=True)[:k]"),
        "smallest_k": ("Return the k smallest numbers in ascending order.", "sorted(numbers)[:k]"), "append_k": ("Return a new list with k at its end.", "numbers + [k]"),
        "prepend_k": ("Return a new list with k in front.", "[k] + numbers"), "cap": ("Replace the numbers larger than k by k.", "[min(x, k) for x in numbers]"),
        "raise_to": ("Replace the numbers smaller than k by k.", "[max(x, k) for x in numbers]"), "with_positions": ("Return pairs of position and number.", "[(i, x) for i, x in enumerate(numbers)]"),
        "weighted": ("Multiply each number by its position, counted from 0.", "[i * x for i, x in enumerate(numbers)]"), "prefixes": ("Return all beginnings of the list, the shortest first.", "[numbers[:i] for i in range(1, len(numbers) + 1)]"),
        "suffixes": ("Return all ends of the list, the longest first.", "[numbers[i:] for i in range(len(numbers))]"), "repeat_each": ("Write each number k times.", "[x for x in numbers for _ in range(k)]"),
        "mirror": ("Return the list followed by its reverse.", "numbers + numbers[::-1]"), "remainders": ("Return the remainders of the numbers modulo k.", "[x % k for x in numbers]"),
    }  # fmt: skip
    for name, (said, code) in simple.items():
        takes = (*INTEGERS, *((("k", "small"),) if "k" in code.replace("range", "").replace("key", "") else ()))
        yield Small((name, f"{name}_items"), takes, "list", (said, f"Given a list of integers, {said[0].lower()}{said[1:]}"), (f"    return {code}",))  # fmt: skip
    for kept in PLAIN:
        keep = kept.code.format(x="x")
        for where, code in (("front", "yes + no"), ("end", "no + yes")):
            yield Small((f"{kept.word}_to_{where}", f"move_{kept.word}"), (*INTEGERS, *kept.needs), "List[int]",
                        (f"Move the {kept.phrase.format(s='numbers')} to the {where} of the list and keep the order otherwise.",),
                        (f"    yes = [x for x in numbers if {keep}]\n    no = [x for x in numbers if not ({keep})]\n    return {code}",))  # fmt: skip
        for made in MAPPINGS[1:8]:
            new = made.code.format(x="x")
            yield Small((f"{made.word}_where_{kept.word}", f"change_{kept.word}"), (*INTEGERS, *kept.needs), "List[int]",
                        (f"Return a list in which the {kept.phrase.format(s='numbers')} are replaced by the {made.phrase.format(s='numbers')}; all others stay.",),
                        (f"    return [{new} if {keep} else x for x in numbers]",
                         f"    result = []\n    for x in numbers:\n        if {keep}:\n            result.append({new})\n        else:\n            result.append(x)\n    return result"))  # fmt: skip


def decisions() -> Iterator[Small]:
    grades = (("hot", "warm", "cold"), ("high", "middle", "low"), ("large", "medium", "small"), ("A", "B", "C"), ("old", "adult", "young"), ("fast", "steady", "slow"))  # fmt: skip
    for top, middle, low in grades:
        for a, b in ((10, 3), (50, 20), (100, 10), (30, 15), (7, 0)):
            says = (f'Return "{top}" if n is at least {a}, "{middle}" if it is at least {b}, and "{low}" otherwise.',)
            yield Small(("classify", "grade", "label", "level"), (("n", "large"),), "str", says,
                        (f"    if n >= {a}:\n        return '{top}'\n    if n >= {b}:\n        return '{middle}'\n    return '{low}'",
                         f"    if n >= {a}:\n        return '{top}'\n    elif n >= {b}:\n        return '{middle}'\n    else:\n        return '{low}'"))  # fmt: skip
    for p in PLAIN:
        for q in PLAIN[:5]:
            if p.word != q.word:
                a, b = p.code.format(x="n"), q.code.format(x="n")
                for word, op in (("both", "and"), ("either", "or")):
                    said = f"Return True if n is {word} one of the {p.phrase.format(s='numbers')} {op} one of the {q.phrase.format(s='numbers')}."
                    yield Small((f"is_{p.word}_{op}_{q.word}", f"{word}_{p.word}_{q.word}"), (("n", "large"), *p.needs, *q.needs), "bool", (said,),
                                (f"    return ({a}) {op} ({b})" if " and " in a or " or " in a else f"    return {a} {op} {b}",))  # fmt: skip


def formulas() -> Iterator[Small]:
    known = {
        "kilometres_to_miles": ("km", "Convert kilometres to miles; a mile has 1.609 kilometres.", "km / 1.609"), "hours_to_seconds": ("hours", "Return how many seconds so many hours have.", "hours * 3600"),
        "celsius_to_kelvin": ("degrees", "Convert degrees Celsius to kelvins.", "degrees + 273.15"), "rectangle_area": ("width, height", "Return the area of a rectangle.", "width * height"),
        "box_volume": ("width, height, depth", "Return the volume of a box.", "width * height * depth"), "box_surface": ("a, b, c", "Return the surface of a box with the sides a, b and c.", "2 * (a * b + b * c + a * c)"),
        "cube_surface": ("side", "Return the surface of a cube.", "6 * side ** 2"), "trapezium": ("a, b, height", "Return the area of a trapezium with the parallel sides a and b.", "(a + b) * height / 2"),
        "hypotenuse": ("a, b", "Return the longest side of a right triangle with the short sides a and b.", "(a ** 2 + b ** 2) ** 0.5"), "speed": ("way, hours", "Return the average speed.", "way / hours"),
        "body_mass_index": ("weight, height", "Return the weight divided by the square of the height.", "weight / height ** 2"), "with_tax": ("price, rate", "Return the price with a tax of so many percent.", "price * (1 + rate / 100)"),
        "weighted_mean": ("a, b, weight", "Return the mean of a and b, where a has the weight and b the rest to 1.", "weight * a + (1 - weight) * b"), "slope": ("x1, y1, x2, y2", "Return the slope of the line through (x1, y1) and (x2, y2).", "(y2 - y1) / (x2 - x1)"),
        "midpoint": ("a, b", "Return the number halfway between a and b.", "(a + b) / 2"), "manhattan": ("x1, y1, x2, y2", "Return the sum of the distances in x and in y.", "abs(x1 - x2) + abs(y1 - y2)"),
        "square_difference": ("a, b", "Return the difference of the squares of a and b.", "a ** 2 - b ** 2"), "simple_interest": ("amount, rate, years", "Return the interest of an amount after so many years at a rate in percent.", "amount * rate * years / 100"),
        "line": ("a, b, x", "Return the value of a * x + b.", "a * x + b"), "parabola": ("a, b, c, x", "Evaluate the polynomial a x^2 + b x + c.", "a * x ** 2 + b * x + c"), "kinetic_energy": ("mass, speed", "Return half the mass times the square of the speed.", "mass * speed ** 2 / 2"),
        "minutes": ("hours, minutes", "Return how many minutes that are in all.", "hours * 60 + minutes"), "rhombus_area": ("p, q", "Return the area of a rhombus with the diagonals p and q.", "p * q / 2"), "remaining": ("total, part", "Return which share of the total is left without the part.", "(total - part) / total"),
    }  # fmt: skip
    for name, (takes, said, code) in known.items():
        arguments = tuple((take, "number") for take in takes.split(", "))
        yield Small((name, f"get_{name}", f"compute_{name}"), arguments, "float", (said, said.replace("Return", "Calculate")), (f"    return {code}",))  # fmt: skip
        yield Small((f"rounded_{name}", f"{name}_rounded"), arguments, "float", (f"{said} Round it to two digits.",),
                    (f"    return round({code}, 2)", f"    result = {code}\n    return round(result, 2)"))  # fmt: skip
