"""JSON read without trust: every key is asked for with its type and bounds, and what nobody asked for is refused."""

import json
import math
import re
from typing import Any, NoReturn

from mbjax.errors import InputError

MAX_INTEGER = 2**53  # beyond it a float, which other readers of the file may use, is no longer exact


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`; `where` (a path) begins every error.

    Raises InputError for anything but one valid UTF-8 JSON object, and for what Python's parser would let pass: a key
    named twice, NaN and infinities, floats that overflow, integers beyond 2^53, nesting that exhausts the stack.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands there twice")
        return found

    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_exact,
        )
    except RecursionError:
        refuse(where, "is nested too deeply")
    except UnicodeDecodeError:
        refuse(where, "is not UTF-8 text")
    except json.JSONDecodeError as error:
        refuse(where, f"is not valid JSON: {error.msg} at line {error.lineno}")
    except ValueError as error:
        refuse(where, f"is not valid JSON: {error}")
    if not isinstance(value, dict):
        refuse(where, "holds no JSON object")
    return value


def canonical(value: Any) -> bytes:
    """The one byte form of a JSON value that digests are taken of: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def refuse(where: str, reason: str) -> NoReturn:
    raise InputError(f"{where}: {reason}")


def shown(text: str) -> str:
    """Foreign text as it may stand in an error line: quoted, printable ASCII, at most about 60 characters."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


class Fields:
    """One JSON object while it is read. Each method takes a key once; `done` refuses the keys that are left.

    Every method raises InputError naming file and key where the key is missing, of another type or out of bounds.
    """

    def __init__(self, value: Any, where: str, name: str = "") -> None:
        self._where, self._name = where, name
        if not isinstance(value, dict):
            refuse(where, f"{name or 'the document'} must be an object")
        self._left: dict[str, Any] = dict(value)

    def path(self, key: str) -> str:
        return f"{self._name}.{key}" if self._name else key

    def refuse(self, key: str, reason: str) -> NoReturn:
        refuse(self._where, f"{self.path(key)} {reason}")

    def take(self, key: str) -> Any:
        if key not in self._left:
            self.refuse(key, "is missing")
        return self._left.pop(key)

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null; a null is taken away."""
        if self._left.get(key) is None:
            self._left.pop(key, None)
            return False
        return True

    def text(self, key: str, most: int = 200, pattern: str | None = None, hint: str = "") -> str:
        """Printable text of 1 to `most` characters that matches all of `pattern`."""
        return self._checked_text(key, self.take(key), most, pattern, hint)

    def texts(self, key: str, most: int, length: int = 200) -> tuple[str, ...]:
        """A list of at most `most` printable texts, none twice."""
        found = tuple(self._checked_text(key, item, length, None, "") for item in self.items(key, most))
        if len(set(found)) != len(found):
            self.refuse(key, "names something twice")
        return found

    def integer(self, key: str, low: int, high: int) -> int:
        return self._checked_integer(key, self.take(key), low, high)

    def integers(self, key: str, most: int, low: int, high: int) -> tuple[int, ...]:
        """A list of at most `most` integers."""
        return tuple(self._checked_integer(key, item, low, high) for item in self.items(key, most))

    def number(self, key: str, low: float, high: float) -> float:
        return self._checked_number(key, self.take(key), low, high)

    def numbers(self, key: str, most: int, low: float, high: float) -> tuple[float, ...]:
        return tuple(self._checked_number(key, item, low, high) for item in self.items(key, most))

    def flag(self, key: str) -> bool:
        value = self.take(key)
        if type(value) is not bool:
            self.refuse(key, "must be true or false")
        return value

    def digest(self, key: str) -> str:
        """A sha256 as 64 small hex digits."""
        return self.text(key, 64, "[0-9a-f]{64}", "must be 64 small hex digits")

    def items(self, key: str, most: int) -> list[Any]:
        value = self.take(key)
        if not isinstance(value, list) or len(value) > most:
            self.refuse(key, f"must be a list of at most {most} entries")
        return value

    def object(self, key: str) -> "Fields":
        return Fields(self.take(key), self._where, self.path(key))

    def objects(self, key: str, most: int) -> list["Fields"]:
        """A list of at most `most` objects."""
        return [Fields(item, self._where, f"{self.path(key)}[{i}]") for i, item in enumerate(self.items(key, most))]

    def keys(self, most: int) -> list[str]:
        """The keys not taken yet, where an object is a table."""
        if len(self._left) > most:
            refuse(self._where, f"{self._name or 'the document'} has more than {most} entries")
        return list(self._left)

    def done(self) -> None:
        """Refuses what nobody asked for: a setting that is not understood may not be passed over."""
        if self._left:
            unknown = ", ".join(shown(key) for key in sorted(self._left)[:5])
            refuse(self._where, f"{self._name or 'the document'} has unknown keys: {unknown}")

    def _checked_text(self, key: str, value: Any, most: int, pattern: str | None, hint: str) -> str:
        if not isinstance(value, str) or not 1 <= len(value) <= most or not value.isprintable():
            self.refuse(key, f"must be printable text of 1 to {most} characters")
        if pattern is not None and not re.fullmatch(pattern, value):
            self.refuse(key, f"is {shown(value)}; {hint}")
        return value

    def _checked_integer(self, key: str, value: Any, low: int, high: int) -> int:
        if type(value) is not int or not low <= value <= high:
            self.refuse(key, f"must be a whole number from {low} to {high}")
        return value

    def _checked_number(self, key: str, value: Any, low: float, high: float) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            self.refuse(key, f"must be a number from {low:g} to {high:g}")
        return float(value)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _exact(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > MAX_INTEGER:
        raise ValueError("a whole number is too large")
    return int(text)
