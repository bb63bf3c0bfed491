"""One training run from end to end: examples, rows, tap states, training, and the pack directory with its report."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mbjax.core.pack import Pack
from mbjax.errors import FailureError, InputError
from mbjax.io.load import LoadedBase, load_base
from mbjax.io.pack_dir import About, write_pack
from mbjax.io.pack_load import binding
from mbjax.io.pack_manifest import DataSource, created_by
from mbjax.io.router_dir import ROUTER, load_router
from mbjax.training.config import PackConfig
from mbjax.training.examples import read_examples
from mbjax.training.pack_loop import Event, TrainData, new_pack, train_pack
from mbjax.training.report import Summary, write_report
from mbjax.training.route import calibrate_pack, read_prompts
from mbjax.training.rows import PackedRows, common_prefix, pack_rows
from mbjax.training.tap_cache import tap_cache

_MOST_VALID_ROWS = 48  # enough to tell runs apart; more would take time from training
LOG = "log.jsonl"


@dataclasses.dataclass(frozen=True)
class Watch:
    """Whoever shows the progress: `stage(text, done, total)` before training, `event` during it."""

    stage: Callable[[str, int, int], None] = lambda text, done, total: None
    event: Callable[[Event], None] = lambda event: None


def train_from_config(config: PackConfig, folder: Path, out: Path, work: Path, watch: Watch | None = None) -> Summary:
    """Trains the pack of a configuration whose paths are relative to `folder`.

    The pack directory is written to `out`, checkpoints, log and report to `work`, which a second call continues.
    Raises InputError for wrong data or a base that does not fit, FailureError where something cannot be written.
    """
    watch = watch or Watch()
    for name in (config.data.route, *config.data.route_against):
        if name is not None:
            read_prompts(folder / name)  # what is wrong with it must not show when all is trained
    base = load_base(config.base, config.dtype)
    rows, valid_rows, n_examples = _read(config, folder, base)
    try_writing(new_pack(config, base.params, base.config), _about(config, base), out)
    data = TrainData(rows, _tap(base, rows, "tap states", watch))
    valid_data = TrainData(valid_rows, _tap(base, valid_rows, "tap states of validation", watch))
    base.release()  # training reads no understanding layers; what it needs is mapped again
    log = work / LOG

    def watched(event: Event) -> None:
        with log.open("a", encoding="utf-8") as file:
            values = {key: value for key, value in dataclasses.asdict(event).items() if value is not None}
            file.write(json.dumps(values) + "\n")
        watch.event(event)

    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FailureError(f"{work}: cannot be made ({error.strerror}); choose another --work") from error
    pack, _ = train_pack(config, base.params, base.config, data, valid_data, work, watched)
    summary = Summary(config, base.name, n_examples, rows.n_used, len(rows), read_log(log))
    card = write_report(summary, work)
    write_pack(out, pack, _about(config, base), card=card)
    calibrate_beside(out, config, folder, base, watch)
    return summary


def calibrate_beside(out: Path, config: PackConfig, folder: Path, base: LoadedBase, watch: Watch) -> bool:
    """Gives the pack its route key where a router for this base lies beside it; False where there is none."""
    try:
        load_router(out.parent / ROUTER, base)
        sets = [read_prompts(folder / name) for name in (config.data.train, config.data.route) if name is not None]
        against = [read_prompts(folder / name) for name in config.data.route_against]
        held_out = read_prompts(folder / config.data.valid)
        calibrate_pack(out, sets, out.parent / ROUTER, base, watch.stage, against=against, held_out=held_out)
    except InputError:  # no router, one of another base, too few prompts: the pack can be calibrated later
        return False
    return True


def try_writing(pack: Pack, about: About, out: Path) -> None:
    """Writes the untrained pack beside `out` and removes it again: what cannot be written must not end a long run."""
    trial = out.with_name(f"{out.name}.trial")
    try:
        write_pack(trial, pack, about, card="A trial.\n")
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def read_log(path: Path) -> list[Event]:
    """The events of all calls of a run, the last of each step: a resumed run repeats a few."""
    events = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        event = Event(**json.loads(line))
        events[event.step, event.valid_loss is not None] = event
    return [events[key] for key in sorted(events)]


def _read(config: PackConfig, folder: Path, base: LoadedBase) -> tuple[PackedRows, PackedRows, int]:
    """Rows of both sets behind one prefix, of the training rows no more than the steps will use; training examples."""
    longest = min(base.config.max_context, 4096)
    train, valid = (
        read_examples(folder / name, base.tokenizer, longest) for name in (config.data.train, config.data.valid)
    )
    prefix = common_prefix([*train, *valid])
    both = [pack_rows(examples, config.data.row_length, config.loop.seed, prefix) for examples in (train, valid)]
    rows = both[0].first(config.loop.steps * config.loop.rows)
    return rows, both[1].first(_MOST_VALID_ROWS), len(train)


def _tap(base: LoadedBase, rows: PackedRows, text: str, watch: Watch) -> np.ndarray:
    return tap_cache(base.params, base.digest, base.config, rows, lambda done, total: watch.stage(text, done, total))


def _about(config: PackConfig, base: LoadedBase) -> About:
    return About(
        id=config.id,
        name=config.name or config.id,
        version=config.version,
        base=binding(base),
        licence=config.licence,
        created_by=created_by("pack train"),
        data=tuple(DataSource(source.name, source.licence, source.origin) for source in config.sources),
    )
