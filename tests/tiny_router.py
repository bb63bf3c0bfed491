"""A tiny base on disk with packs, background prompts and a router, made once for the tests that need them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from tiny import PLAIN, random_base
from tiny_packs import about, random_pack
from tiny_text import byte_tokenizer

from mbjax.io.load import LoadedBase
from mbjax.io.pack_dir import write_pack
from mbjax.io.pack_load import binding
from mbjax.training.route import calibrate_pack, train_router

TINY = dataclasses.replace(PLAIN, n_layers=4, vocab_size=258, max_context=256)
THINGS = ("tea", "rain", "a chair", "the sea", "paper", "a song", "bread", "the road", "a lamp", "wool")
FORMS = ("Tell me of {}.", "What is {}?", "Why {}?", "I like {}", "{} please", "is {} good or bad?")
SUMS = [f"{a}+{b}={a + b}; {b}-{a}?" for a in range(3, 12) for b in range(20, 90, 7)]
SHOUTS = [f"HEY {a} {b}!!! {a}!" for a in ("ZAP", "WOW", "BIFF", "KAPOW") for b in "QWERTYUIOPASDFGHJKLZX"]
BACKGROUND = [form.format(thing) for form in FORMS for thing in THINGS] + SUMS[::12] + SHOUTS[::12]


def quiet(text: str, done: int, total: int) -> None:
    """A progress that nobody watches."""


def tiny_base(seed: int = 0) -> LoadedBase:
    return LoadedBase(random_base(TINY, seed=seed), TINY, byte_tokenizer(), "0" * 64, "tiny", Path("tiny"))


def write_packs(directory: Path, base: LoadedBase, ids: tuple[str, ...] = ("shouts", "sums")) -> Path:
    """Packs of random tensors, and the router; those named `sums` and `shouts` know their prompts."""
    train_router(base, BACKGROUND, directory / "router", quiet)
    for i, pack_id in enumerate(ids):
        add_pack(directory, base, pack_id, SUMS if pack_id == "sums" else SHOUTS, seed=i)
    return directory


def add_pack(directory: Path, base: LoadedBase, pack_id: str, prompts: list[str], seed: int = 0) -> Path:
    path = directory / pack_id
    pack = random_pack(base.config, seed=seed, expert=False)
    write_pack(path, pack, about(id=pack_id, base=binding(base)), card=f"# {pack_id}\n")
    calibrate_pack(path, [prompts], directory / "router", base, quiet)
    return path


def write_prompts(path: Path, prompts: list[str], **fields: object) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, **fields}) + "\n" for prompt in prompts), encoding="utf-8")
    return path


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Equal to the last bit."""
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()
