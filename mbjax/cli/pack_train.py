"""`mbjax pack init`, `train` and `eval`."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mbjax.cli import options
from mbjax.cli.base import load_engine
from mbjax.cli.options import DEFAULT_BASE
from mbjax.cli.output import note, print_json, print_table, show_notes, stderr
from mbjax.cli.pack import app

if TYPE_CHECKING:
    from mbjax.io.pack_scores import Score
    from mbjax.training.pack_loop import Event


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder; its name becomes the pack's id.")],
) -> None:
    """Write a commented configuration and example data that train as they stand."""
    from mbjax.training.starter import init_pack

    print(init_pack(folder))


@app.command()
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="See `mbjax pack init`.")],
    out: Annotated[Path | None, typer.Option("--out", help="Pack directory to write; default packs/ID.")] = None,
    work: Annotated[
        Path | None, typer.Option("--work", help="Checkpoints, log and report; default runs/ID. Continued if there.")
    ] = None,
    as_json: options.JsonOption = False,
) -> None:
    """Train a pack. Interrupted, it continues where it was, to the same bits."""
    from mbjax.engine.compile_cache import use_compile_cache
    from mbjax.training.config import read_config
    from mbjax.training.run import Watch, train_from_config

    settings = read_config(config)
    out, work = out or Path("packs") / settings.id, work or Path("runs") / settings.id
    use_compile_cache()
    with Display(settings.loop.steps) as display:
        summary = train_from_config(settings, config.parent, out, work, Watch(display.stage, display.event))
    best, speed = summary.best_valid_loss, summary.tokens_per_s
    if as_json:
        report = {"pack": str(out), "work": str(work), "steps": summary.steps}
        print_json(report | {"best_valid_loss": best, "tokens_per_s": speed})
    else:
        print(f"{out} (validation loss {best:.4f}, {speed or 0:.0f} tokens/s; report in {work})")


@app.command("eval")
def evaluate(
    pack: Annotated[Path, typer.Argument(metavar="PACK", help="A pack directory.")],
    file: Annotated[Path, typer.Argument(metavar="TEST.jsonl", help="Held-out lines, as for `mbjax eval`.")],
    base: options.BaseOption = DEFAULT_BASE,
    dtype: options.DtypeOption = "auto",
    force_base: options.ForceOption = False,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="An even choice of at most so many lines of each task.")
    ] = None,
    write: Annotated[
        bool,
        typer.Option("--write", help="Write the scores into the pack; another base than its own becomes compatible."),
    ] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Score base, pack and the router's choice on the same held-out lines, task by task."""
    from mbjax.engine.pack_eval import put_scores, score_pack
    from mbjax.io.pack_check import summarise_pack
    from mbjax.io.pack_scores import score_json

    summary = summarise_pack(pack)
    engine = load_engine(base, dtype, None, pack.absolute().parent, force_base)
    with Display(0) as display:
        command = f"mbjax {shlex.join(sys.argv[1:])}"
        scores = score_pack(engine, summary.id, file, command=command, progress=display.stage, limit=limit)
    show_notes(engine)
    if write:
        put_scores(pack, scores, engine.base)
        note(f"written to {pack}")
    if as_json:
        print_json({"scores": [score_json(score) for score in scores]})
    else:
        print_table(_table(scores))


def _table(scores: "list[Score]") -> Table:
    from mbjax.engine.pack_eval import shown_score

    table = Table("task", "metric", "n", "base", "pack", "routed", box=None, pad_edge=False)
    for score in scores:
        values = (shown_score(value) for value in (score.base, score.pack, score.routed))
        table.add_row(score.task, score.metric, str(score.n), *values)
    return table


class Display:
    """One bar for what is going on: preparing, then steps with loss, speed and time left."""

    def __init__(self, steps: int) -> None:
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._progress, self._steps = Progress(*columns, console=stderr(), transient=True), steps
        self._task = self._progress.add_task("preparing", total=None)
        self._valid, self._name = "", ""

    def begin(self, name: str, steps: int) -> None:
        """The next of several runs."""
        self._name, self._valid, self._steps = f"{name}: ", "", steps

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def stage(self, text: str, done: int, total: int) -> None:
        self._progress.update(self._task, description=self._name + text, completed=done, total=total)

    def event(self, event: "Event") -> None:
        if event.valid_loss is not None:
            self._valid = f", validation {event.valid_loss:.3f}"
            note(f"{self._name}step {event.step}: validation loss {event.valid_loss:.4f}")
        if event.loss is not None:
            text = f"loss {event.loss:.3f}{self._valid}, {event.tokens_per_s or 0:.0f} tokens/s"
            self._progress.update(self._task, description=self._name + text, completed=event.step, total=self._steps)
