"""How the commands print: documents on stdout, everything else on stderr."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mbjax.engine.sizes import format_bytes

if TYPE_CHECKING:
    from mbjax.engine.engine import Engine
    from mbjax.engine.reply import Memory, Reply, RouteItem

_BAR, _SHADES = 40, "█▓▒░"  # characters of a bar of memory

Report = Callable[[int, int], None]  # (done, total)


def stderr() -> Console:
    return Console(stderr=True, highlight=False)


def print_json(document: dict[str, Any]) -> None:
    """The one document of a command that was given --json."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")


def note(text: str) -> None:
    """A line about the work, for whoever watches."""
    stderr().print(text, style="dim", markup=False, soft_wrap=True)


def show_notes(engine: "Engine") -> None:
    """What the engine wants said: no router, a damaged pack."""
    for text in engine.take_notes():
        note(text)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner, on a terminal only, while something takes a moment."""
    console = stderr()
    with console.status(text) if console.is_terminal else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def progress_bar(text: str, *, in_bytes: bool = False) -> Iterator[Report]:
    """A bar, on a terminal only, that appears with the first report and goes with the block."""
    with progress_stages(in_bytes=in_bytes) as stage:
        yield lambda done, total: stage(text, done, total)


@contextlib.contextmanager
def progress_stages(*, in_bytes: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Such a bar for work of several stages: each report says which, how much is done, and of how much."""
    console = stderr()
    if not console.is_terminal:
        yield lambda text, done, total: None
        return
    amount = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, visible=False)

        def report(text: str, done: int, total: int) -> None:
            progress.update(task, description=text, completed=done, total=total, visible=True)

        yield report


def bytes_table(components: dict[str, int], total: int, budget: int | None) -> Table:
    """Bytes by component, their sum, and the budget if there is one."""
    table = Table("component", box=None, pad_edge=False)
    table.add_column("bytes", justify="right")
    for name, size in components.items():
        table.add_row(name, format_bytes(size))
    table.add_row("total", format_bytes(total), style="bold")
    if budget is not None:
        table.add_row("budget", format_bytes(budget))
    return table


def print_table(table: Table) -> None:
    Console(highlight=False).print(table)


def print_pieces(pieces: Iterable[str], kept: list[str] | None = None) -> str:
    """Prints an answer as it comes and returns it; `kept` holds what came so far, should it be interrupted."""
    kept = [] if kept is None else kept
    for piece in pieces:
        kept.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(kept)


def _shown_item(item: "RouteItem") -> str:
    """A pack with its gate and, where the router chose it, its score."""
    return f"{item.pack} {item.gate:.2f}" + ("" if item.score is None else f" (score {item.score:.2f})")


def note_reply(reply: "Reply") -> None:
    """Speed and memory of an answer."""
    timing = reply.timing
    speed = f", {timing.decode_tok_s:.1f} tokens/s" if timing.decode_tok_s is not None else ""
    between = ", then " if any(item.part for item in reply.route) else ", "
    route = between.join(_shown_item(item) for item in reply.route) or "base"
    memory = format_bytes(reply.memory.peak)
    note(f"[{route}] {reply.n_prompt} + {len(reply.tokens)} tokens, first after {timing.ttft_s:.2f} s{speed}, {memory}")


def note_memory(memory: "Memory") -> None:
    """A bar of what is held, the largest components first: of the budget if there is one, else of the sum."""
    total = sum(memory.components.values())
    whole = max(memory.budget or total, total, 1)
    parts = sorted(memory.components.items(), key=lambda part: -part[1])
    bar = "".join(_SHADES[i % len(_SHADES)] * round(_BAR * size / whole) for i, (_, size) in enumerate(parts))
    named = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts[:4] if size)
    of = f" of {format_bytes(memory.budget)}" if memory.budget is not None else ""
    note(f"[{bar[:_BAR]:·<{_BAR}}] {format_bytes(total)}{of}: {named}")
