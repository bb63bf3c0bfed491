"""Making a router for a base, and a pack's key for a router."""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import ml_dtypes
import numpy as np

from mbjax.errors import InputError
from mbjax.io.even_choice import even_choice
from mbjax.io.load import LoadedBase
from mbjax.io.pack_dir import RouteKey, update_pack
from mbjax.io.pack_load import load_pack
from mbjax.io.pack_manifest import created_by
from mbjax.io.route_key import key_tensors
from mbjax.io.router_dir import MAX_BACKGROUND, Router, base_of, load_router, write_router
from mbjax.training.examples import read_records
from mbjax.training.prompt_states import prompt_states
from mbjax.training.route_fit import FittedKey, fit_key, fit_space

SPACE = 1  # raised whenever the same prompts would give another space
MOST_PROMPTS = 600  # of a set: more cost time and change little
LEAST_PROMPTS = 10

Progress = Callable[[str, int, int], None]


def background_prompts(path: Path | None = None) -> list[str]:
    """The prompts of a JSONL file, or those that come with the package; an even choice where there are more than
    `MAX_BACKGROUND`. Raises InputError for wrong lines, and where there are none."""
    if path is not None:
        return even_choice(read_prompts(path), MAX_BACKGROUND)
    shipped = files("mbjax").joinpath("data").joinpath("background").iterdir()
    texts = [p.read_text("utf-8") for p in sorted(shipped, key=lambda p: p.name) if p.name.endswith(".jsonl")]
    return even_choice(
        [json.loads(line)["prompt"] for text in texts for line in text.split("\n") if line], MAX_BACKGROUND
    )


def read_prompts(path: Path) -> list[str]:
    """The user's first words of each line of a JSONL file or data set directory: `prompt`, the first user message of
    `messages`, or `text`; none twice. Raises InputError for a line without."""
    found = []
    for line, record in read_records(path):
        messages = record.get("messages")
        user = (
            [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
            if isinstance(messages, list)
            else []
        )
        prompt = record.get("prompt") or (user[0].get("content") if user else None) or record.get("text")
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{path}, line {line}: no prompt, messages or text to learn the route from")
        found.append(prompt)
    return list(dict.fromkeys(found))


def train_router(base: LoadedBase, prompts: Sequence[str], out: Path, progress: Progress) -> Router:
    """Makes the router of a base from background prompts and writes it to `out`."""
    if len(prompts) < LEAST_PROMPTS:
        raise InputError(f"{len(prompts)} background prompts are too few; give at least {LEAST_PROMPTS}")
    states = prompt_states(base, prompts, lambda done, total: progress("background", done, total))
    mean, whitening = fit_space(states)
    background = ((states - mean) @ whitening.T).astype(ml_dtypes.bfloat16)
    about = base_of(base)
    card = _card(about.name, len(prompts))
    router = Router(about, mean, whitening, background, background_digest(prompts), created_by("train router"), card)
    write_router(out, router)
    return router


def background_digest(prompts: Sequence[str]) -> str:
    """sha256 of the prompts and of how a space is made from them: keys of one do not fit another."""
    return hashlib.sha256(json.dumps({"space": SPACE, "prompts": list(prompts)}).encode()).hexdigest()


def calibrate_pack(
    path: Path,
    sets: Sequence[Sequence[str]],
    router_path: Path,
    base: LoadedBase,
    progress: Progress,
    *,
    against: Sequence[Sequence[str]] = (),
    held_out: Sequence[str] = (),
    force_base: bool = False,
) -> FittedKey:
    """Fits a pack's route key from sets of its own prompts, of equal weight however long they are, and writes it into
    the pack; nothing else of it changes. `against` are sets of prompts that look like its own and are not, also of
    equal weight, `held_out` more of its own, of groups that no set holds: what it will be asked is not quite what it
    was trained on.

    Raises InputError where there are too few, and where router or pack do not fit the base.
    """
    router = load_router(router_path, base)
    load_pack(path, base, force_base=force_base)
    for prompts in sets:
        if len(prompts) < LEAST_PROMPTS:
            raise InputError(f"a set of {len(prompts)} prompts is too small; give at least {LEAST_PROMPTS}")
    fitted = fit_route(router, base, sets, progress, against, held_out)
    update_pack(path, route=route_key(fitted, router))
    return fitted


def fit_route(
    router: Router,
    base: LoadedBase,
    sets: Sequence[Sequence[str]],
    progress: Progress,
    against: Sequence[Sequence[str]] = (),
    held_out: Sequence[str] = (),
) -> FittedKey:
    """The key of a pack's prompts in a router's space; of each set, also `against`, and of `held_out` at most
    MOST_PROMPTS are read."""
    chosen = [even_choice(prompts, MOST_PROMPTS) for prompts in (*sets, held_out, *against)]
    flat = [prompt for prompts in chosen for prompt in prompts]
    states = prompt_states(base, flat, lambda done, total: progress("prompts", done, total))
    borders = np.cumsum([len(prompts) for prompts in chosen])[:-1]
    parts = np.split((states - router.mean) @ router.whitening.T, borders)
    own, unseen, foreign = parts[: len(sets)], parts[len(sets)], parts[len(sets) + 1 :]
    return fit_key(own, router.background.astype(np.float32), _evened(foreign), unseen)


def _evened(sets: Sequence[np.ndarray]) -> np.ndarray | None:
    """The sets [N, W] as one, the shorter ones several times: each weighs about the same."""
    filled = [part for part in sets if len(part)]
    if not filled:
        return None
    longest = max(map(len, filled))
    return np.concatenate([np.tile(part, (round(longest / len(part)), 1)) for part in filled])


def route_key(fitted: FittedKey, router: Router) -> RouteKey:
    """What a pack's directory stores of a fitted key."""
    return RouteKey(key_tensors(fitted.direction, fitted.bias), fitted.threshold, router.background_digest)


def _card(base: str, n: int) -> str:
    return (
        f"# Router for {base}\n\n"
        f"The routing space of mbjax for this base: the mean state at the tap of a prompt's own tokens, whitened by"
        f" {n:,} background prompts of many kinds, and these prompts' places in it. It knows no pack; each pack's own"
        " directory holds its key.\n\n"
        "Made by `mbjax train router`. A pack gets its key with `mbjax pack calibrate PACK --prompts FILE.jsonl`.\n"
    )
