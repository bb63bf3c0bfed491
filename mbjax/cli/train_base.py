"""`mbjax train base`."""

import signal
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from mbjax.cli import options
from mbjax.cli.output import note, print_json
from mbjax.cli.train_data import app

if TYPE_CHECKING:
    from mbjax.training.base_loop import BaseEvent

_TERMINATED = 143  # 128 + SIGTERM, as shells have it
_PROCESSES = "Several processes"


@app.command()
def base(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="configs/base/ holds some.")],
    out: Annotated[Path | None, typer.Option("--out", help="HF directory to write; default bases/NAME.")] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="Checkpoints and log; default runs/NAME. Continued if there.")
    ] = None,
    coordinator: Annotated[
        str | None,
        typer.Option(
            "--coordinator",
            metavar="HOST:PORT",
            envvar="MBJAX_COORDINATOR",
            help="Where process 0 listens.",
            rich_help_panel=_PROCESSES,
        ),
    ] = None,
    process: Annotated[
        int | None,
        typer.Option("--process", envvar="MBJAX_PROCESS", help="This one, from 0.", rich_help_panel=_PROCESSES),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", envvar="MBJAX_PROCESSES", help="How many.", rich_help_panel=_PROCESSES),
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Train a base from scratch. Interrupted (Ctrl-C, SIGTERM, a crash), it continues from its last checkpoint."""
    from mbjax.engine.compile_cache import use_compile_cache
    from mbjax.training.base_config import read_base_config
    from mbjax.training.processes import joined

    settings = read_base_config(config)
    out, work = out or Path("bases") / settings.name, work or Path("runs") / settings.name
    use_compile_cache()
    stop = _Stop()
    with joined(coordinator, process, processes):
        from mbjax.training.base_run import train_base_from_config

        shown = _Show(settings.loop.steps) if not process else None
        result = train_base_from_config(settings, config.parent, out, work, shown or (lambda event: None), stop)
    if as_json and not process:
        report = {"base": str(out) if result.finished else None, "work": str(work), "step": result.step}
        print_json(report | {"finished": result.finished, "bits_per_byte": result.bits_per_byte})
    elif not process and result.finished:
        print(f"{out} ({result.step} steps, {result.bits_per_byte:.4f} bits per byte held out; log in {work})")
    if not result.finished:
        note(f"stopped after step {result.step} with a checkpoint; the same command goes on")
        raise typer.Exit(_TERMINATED)


class _Stop:
    """True once the process was asked to end (SIGTERM); the run then stops after its next report, with a checkpoint."""

    def __init__(self) -> None:
        self._asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True

    def __call__(self) -> bool:
        return self._asked


class _Show:
    """A line for every report, with the time left."""

    def __init__(self, steps: int) -> None:
        self._steps, self._start, self._first = steps, time.monotonic(), 0

    def __call__(self, event: "BaseEvent") -> None:
        if event.bits_per_byte is not None:
            note(f"step {event.step}: held out {event.bits_per_byte:.4f} bits per byte, loss {event.valid_loss:.4f}")
            return
        self._first = self._first or event.step
        done, seconds = event.step - self._first, time.monotonic() - self._start
        left = f", {seconds / done * (self._steps - event.step) / 60:.0f} min left" if done > 0 else ""
        note(
            f"step {event.step} of {self._steps}: loss {event.loss:.4f}, gradient {event.grad_norm:.3f},"
            f" {event.tokens_per_s:,.0f} tokens/s, {event.mfu:.1%} of the peak{left}"
        )
