"""Small packs, and what is said of them, that the tests of pack files share."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from mbjax.core.config import ModelConfig
from mbjax.core.expert import declare_expert, expert_config
from mbjax.core.lora import declare_lora
from mbjax.core.pack import Pack
from mbjax.core.param import abstract_params
from mbjax.io.pack_dir import About, RouteKey, write_pack
from mbjax.io.pack_manifest import BaseBinding, DataSource, Manifest
from mbjax.io.pack_scores import Score

CONFIG = ModelConfig(
    n_layers=4, d_model=16, n_heads=2, n_kv_heads=1, head_dim=8, d_ff=24, vocab_size=61, max_context=64
)
BASE = BaseBinding("tiny", "a" * 64, "b" * 64, "c" * 64, CONFIG)
SCORE = Score("toy", "exact match", 100, "d" * 64, base=0.0, pack=0.75, command="mbjax pack eval", routed=0.5)


@dataclasses.dataclass(frozen=True)
class FakeBase:
    """What `load_pack` asks of a loaded base."""

    config: ModelConfig = CONFIG
    digest: str = BASE.digest
    name: str = "tiny"
    tokenizer_digest: str = BASE.tokenizer_digest
    template_digest: str | None = BASE.template_digest


def random_pack(config: ModelConfig = CONFIG, *, expert: bool = True, lora: bool = True, seed: int = 0) -> Pack:
    """Random values everywhere, zeros nowhere."""
    rng = np.random.default_rng(seed)
    shape = Pack(
        expert=declare_expert(config, expert_config(config, 1, d_model=8, d_ff=8)) if expert else None,
        lora=declare_lora(config, rank=2, alpha=4.0, targets=("q", "down")) if lora else None,
    )
    shapes = abstract_params(shape)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), shapes)


def about(**changes: object) -> About:
    data = (DataSource("toy questions", "CC0-1.0", "made here"),)
    plain = About("toy", "Toy pack", "1.0.0", BASE, "Apache-2.0", "mbjax tests", data)
    return dataclasses.replace(plain, **changes)  # pyright: ignore[reportArgumentType]


def route_key() -> RouteKey:
    vectors = np.random.default_rng(7).standard_normal((2, CONFIG.d_model)).astype(np.float32)
    return RouteKey({"vectors": vectors, "bias": np.float32([0.25])}, 0.7, "e" * 64)


def write_toy(path: Path, pack: Pack | None = None, dtype: str = "float32", **changes: object) -> Manifest:
    rest = {"scores": [SCORE], "card": "# Toy\n", "route": route_key()}
    return write_pack(path, pack or random_pack(), about(**changes), dtype=dtype, **rest)  # pyright: ignore[reportArgumentType]


def same_trees(one: object, other: object) -> bool:
    """Equal structure, dtypes and bits."""
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)
