"""`mbjax route`: the packs that each prompt of a file calls for, and how often that is right."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mbjax.core.router import RESIDENT
from mbjax.engine.engine import Engine
from mbjax.engine.reply import RouteItem
from mbjax.engine.route_all import route_all
from mbjax.errors import InputError
from mbjax.io.prompt import Message, Prompt
from mbjax.io.strict_json import shown


@dataclasses.dataclass(frozen=True)
class Asked:
    """One line: a prompt or a conversation, and the packs it should call for (None: not said)."""

    prompt: str | list[Message]
    domains: frozenset[str] | None
    where: str


@dataclasses.dataclass(frozen=True)
class Routed:
    """Results per line and in all; `summary` has `n`, `counts` by selected set, and `accuracy` where lines say what
    is right: the set selected, the chat pack left out, is exactly the set of domains."""

    items: list[dict[str, Any]]
    summary: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The `route` document of the command line."""
        return dataclasses.asdict(self)


def read_asked(path: Path) -> list[Asked]:
    """Lines {"prompt"} or {"messages"}, with "domain" (a name, or null for none) or "domains" (a list) if known.

    Raises InputError naming the file and the number of the first wrong line.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}); give a JSON Lines file") from error
    found = [_asked(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError(f'{path}: holds no line; each must be {{"prompt": ...}}')
    return found


def route_prompts(
    engine: Engine, asked: Sequence[Asked], *, raw: bool = False, progress: Callable[[int, int], None] | None = None
) -> Routed:
    """The route of each line. Raises InputError where there is no router, or a prompt does not fit the context."""
    if engine.routing is None:
        raise InputError("; ".join(engine.notes) or "no packs are in use: give --packs DIR with packs and a router")
    prompts = [_read(engine, item, raw) for item in asked]
    routes = route_all(engine, prompts, progress)
    items = [_item(one, route) for one, route in zip(asked, routes, strict=True)]
    return Routed(items, _summary(asked, items))


def selected(route: Sequence[RouteItem]) -> frozenset[str]:
    """The packs of a route but the resident one."""
    return frozenset(item.pack for item in route if item.pack != RESIDENT)


def _item(asked: Asked, route: list[RouteItem]) -> dict[str, Any]:
    item: dict[str, Any] = {"route": [dataclasses.asdict(entry) for entry in route]}
    if asked.domains is not None:
        item |= {"domains": sorted(asked.domains), "correct": selected(route) == asked.domains - {RESIDENT}}
    return item


def _summary(asked: Sequence[Asked], items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts: dict[str, int] = {}
    by_domain: dict[str, list[bool]] = {}
    for one, item in zip(asked, items, strict=True):
        name = "+".join(entry["pack"] for entry in item["route"]) or "base"
        counts[name] = counts.get(name, 0) + 1
        if one.domains is not None:
            by_domain.setdefault("+".join(sorted(one.domains)) or "none", []).append(item["correct"])
    summary: dict[str, Any] = {"n": len(items), "counts": dict(sorted(counts.items()))}
    if by_domain:
        known = [right for part in by_domain.values() for right in part]
        shares = {name: {"n": len(part), "accuracy": sum(part) / len(part)} for name, part in sorted(by_domain.items())}
        summary |= {"accuracy": sum(known) / len(known), "domains": shares}
    return summary


def _read(engine: Engine, asked: Asked, raw: bool) -> Prompt:
    try:
        return engine.read(asked.prompt, raw=raw)
    except InputError as error:
        raise InputError(f"{asked.where}: {error}") from error


def _asked(line: str, where: str) -> Asked:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f'{where}: is not JSON ({error}); each line must be {{"prompt": ...}}') from error
    prompt: Any = value.get("prompt", value.get("messages")) if isinstance(value, dict) else None
    if not (isinstance(prompt, str) and prompt) and not _are_messages(prompt):
        raise InputError(f'{where}: needs "prompt", a text, or "messages", a list of role and content')
    return Asked(prompt, _domains(value, where), where)


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
        )
    )


def _domains(value: dict[str, Any], where: str) -> frozenset[str] | None:
    if "domains" in value:
        names = value["domains"]
    elif "domain" in value:
        names = [] if value["domain"] is None else [value["domain"]]
    else:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f'{where}: "domain" must be a pack\'s name or null, not {shown(str(names))}')
    return frozenset(names)
