"""A jinja2 sandbox in which a template also cannot run for ever or fill the memory.

jinja2's immutable sandbox keeps templates from Python's internals and from changing their arguments. Here in
addition every turn of a loop and every call of a macro counts against a limit, and so does the size of every value
that an operator, a filter, a method or a block makes. Made for chat templates, which need little of either.
"""

import threading
from collections.abc import Callable, Iterable, Sized
from functools import wraps
from typing import Any, ClassVar, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MOST_TURNS = 50_000  # of all loops and macros of one rendering together
_MOST_ITEMS = 50_000_000  # characters and items of all values that one rendering makes
_MOST_NUMBER = 10_000  # a number handed to a filter or method is often a width
_MOST_BITS = 1_024


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The settings of Hugging Face's chat templates, and the limits."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self._spent = threading.local()  # of the rendering that this thread is at
        self.begin()
        self.filters = {
            name: self._bounded(function, name)
            for name, function in self.filters.items()
            if name not in ("format", "pprint")
        }

    def begin(self) -> None:
        """Starts the counts of one rendering."""
        self._spent.turns = self._spent.items = 0

    def turn(self) -> str:
        """Counts one turn of a loop or one call of a macro."""
        self._spent.turns += 1
        if self._spent.turns > _MOST_TURNS:
            raise SecurityError(f"it runs for more than {_MOST_TURNS:,} turns of its loops")
        return ""

    def concat(self, parts: Iterable[str]) -> str:  # type: ignore[override]
        """What a macro or a block has written."""
        return self._made("".join(parts))

    def joined(self, *parts: Any) -> str:
        """The `~` operator."""
        return self._made("".join(str(part) for part in parts))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _count_turns(tree, self)
        return tree

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        name = getattr(obj, "__name__", None) or getattr(obj, "name", "a value")
        return self._bounded(super().call, name)(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it formats with '%'")
        if operator == "*":
            times = max((abs(value) for value in (left, right) if isinstance(value, int)), default=1)
            if times * max(_size(left), _size(right)) > _MOST_ITEMS:
                _too_much()
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= 64):
            _too_much()
        return self._made(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is not None:  # it is str.format: a width in its text makes any length
            raise SecurityError("it calls 'format'")
        return None

    def _bounded(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, refusing large numbers among its arguments and counting the size of its result."""

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            for value in (*args, *kwargs.values()):
                if isinstance(value, int | float) and abs(value) > _MOST_NUMBER:
                    raise SecurityError(f"it calls '{name}' with a number above {_MOST_NUMBER:,}")
            return self._made(function(*args, **kwargs))

        return checked

    def _made(self, value: Any) -> Any:
        self._spent.items += _size(value)
        if self._spent.items > _MOST_ITEMS or (isinstance(value, int) and value.bit_length() > _MOST_BITS):
            _too_much()
        return value


class _Generation(Extension):
    """`{% generation %}`, with which training templates mark the assistant's words; it renders its body."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _count_turns(tree: nodes.Node, environment: BoundedEnvironment) -> None:
    """Puts a call of `turn` into every loop and macro, and replaces `~` by `joined`."""

    def method(name: str, args: list[nodes.Expr]) -> nodes.Call:
        call = nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None)
        call.set_environment(environment)
        return call

    for node in list(tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
        turn = nodes.ExprStmt(method("turn", []))
        turn.set_lineno(node.lineno or 1)
        node.body.insert(0, turn)  # type: ignore[attr-defined]
    _replace_concat(tree, method)


def _replace_concat(node: nodes.Node, method: Callable[[str, list[nodes.Expr]], nodes.Call]) -> None:
    for field, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, field, [_without_concat(item, method) for item in value])
        else:
            setattr(node, field, _without_concat(value, method))


def _without_concat(value: Any, method: Callable[[str, list[nodes.Expr]], nodes.Call]) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _replace_concat(value, method)
    if isinstance(value, nodes.Concat):
        return method("joined", value.nodes).set_lineno(value.lineno or 1)
    return value


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else 0


def _too_much() -> NoReturn:
    raise SecurityError(f"it makes values of more than {_MOST_ITEMS:,} characters or items")
