"""A jinja2 sandbox in which a template also cannot run for ever or fill the memory.

jinja2's immutable sandbox keeps templates from Python's internals and from changing their arguments. Here in
addition every turn of a loop and every call of a macro counts against a limit, and so does the size of every value
that an operator, a filter or a method makes. Made for chat templates, which need little of either.
"""

from collections.abc import Callable, Sized
from functools import wraps
from typing import Any, ClassVar, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MOST_TURNS = 100_000  # of all loops and macros of one rendering together
_MOST_ITEMS = 10_000_000  # characters or items of one value
_MOST_NUMBER = 10_000  # a number handed to a filter or method is often a width
_MOST_BITS = 1_024


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The settings of Hugging Face's chat templates, and the limits."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self._turns = 0
        self.filters = {name: _bounded(f) for name, f in self.filters.items() if name not in ("format", "pprint")}

    def begin(self) -> None:
        """Starts the count of turns of one rendering."""
        self._turns = 0

    def turn(self) -> str:
        """Counts one turn of a loop or one call of a macro."""
        self._turns += 1
        if self._turns > _MOST_TURNS:
            raise SecurityError(f"it runs for more than {_MOST_TURNS:,} turns of its loops")
        return ""

    def joined(self, *parts: Any) -> str:
        """The `~` operator."""
        return _check("".join(str(part) for part in parts))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _count_turns(tree, self)
        return tree

    def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return _bounded(super().call)(context, obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            raise SecurityError("it formats with '%'")
        if operator == "*":
            left_size, right_size = _size(left), _size(right)
            if isinstance(right, int) and left_size * right > _MOST_ITEMS:
                _too_large()
            if isinstance(left, int) and right_size * left > _MOST_ITEMS:
                _too_large()
        if operator == "**" and not (isinstance(right, int | float) and abs(right) <= 64):
            _too_large()
        return _check(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in ("format", "format_map"):
            return False  # a width in the format text makes any length
        return super().is_safe_attribute(obj, attr, value)


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


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, refusing large numbers among its arguments and large results."""

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for value in (*args, *kwargs.values()):
            if isinstance(value, int | float) and abs(value) > _MOST_NUMBER:
                raise SecurityError(
                    f"it calls '{getattr(function, '__name__', 'a function')}' with the number {value:g}"
                )
        return _check(function(*args, **kwargs))

    return checked


def _check(value: Any) -> Any:
    if _size(value) > _MOST_ITEMS or (isinstance(value, int) and value.bit_length() > _MOST_BITS):
        _too_large()
    return value


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else 0


def _too_large() -> NoReturn:
    raise SecurityError(f"it makes a value of more than {_MOST_ITEMS:,} characters or items")
