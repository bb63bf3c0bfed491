"""Router and packs for another base, from the configurations of a folder: what they say of a base does not count."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from mbjax.errors import InputError
from mbjax.io.load import LoadedBase, load_base
from mbjax.io.pack_check import summarise_pack
from mbjax.io.router_dir import ROUTER, load_router
from mbjax.training.config import PackConfig, read_config
from mbjax.training.route import background_prompts, train_router
from mbjax.training.run import Watch, train_from_config


@dataclasses.dataclass(frozen=True)
class Made:
    """One directory that a call made, or found complete."""

    path: Path
    new: bool


def read_recipes(folder: Path, only: Sequence[str] = ()) -> list[PackConfig]:
    """The configurations of a folder by name. Raises InputError where one is wrong, missing, or there are none."""
    found = {config.id: config for config in (read_config(path) for path in sorted(folder.glob("*.toml")))}
    if not found:
        raise InputError(f"{folder}: holds no configuration of a pack (*.toml); give the folder that does")
    if unknown := [name for name in only if name not in found]:
        raise InputError(f"{folder}: no configuration of a pack '{unknown[0]}' (there: {', '.join(found)})")
    return [config for name, config in found.items() if not only or name in only]


def train_recipes(
    recipes: Sequence[PackConfig], folder: Path, base: str, out: Path, work: Path, watch: Callable[[str, int], Watch]
) -> list[Made]:
    """A router for `base` (a name or a path) and a pack of each recipe, in `out`; runs are kept in `work`.

    What is there for this base already is left as it is, and an interrupted run goes on: call it again.
    `watch(name, steps)` gives who shows the progress of what is made next. Errors are those of `train_from_config`.
    """
    loaded = load_base(base)
    made = [_router(loaded, out / ROUTER, watch(ROUTER, 0))]
    loaded.release()  # each run loads it in a dtype of its own
    for recipe in recipes:
        path = out / recipe.id
        manifest = summarise_pack(path).manifest if path.is_dir() else None
        there = manifest is not None and manifest.base.digest == loaded.digest
        if not there:
            own = dataclasses.replace(recipe, base=base)
            train_from_config(own, folder, path, work / recipe.id, watch(recipe.id, recipe.loop.steps))
        made.append(Made(path, not there))
    return made


def _router(base: LoadedBase, path: Path, watch: Watch) -> Made:
    try:
        load_router(path, base)
    except InputError:  # none, or one of another base
        train_router(base, background_prompts(), path, watch.stage)
        return Made(path, True)
    return Made(path, False)
