"""Packs of the size and shape of the one that ships, for measurements that need several."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from mbjax.io.load import LoadedBase
from mbjax.io.pack_dir import About, read_pack, write_pack
from mbjax.io.pack_load import binding

MODEL = Path(__file__).parent.parent / "packs" / "medical"


def make_packs(directory: Path, base: LoadedBase, n: int) -> list[str]:
    """Writes n packs that differ in their tensors; returns their ids."""
    stored, ids = read_pack(MODEL), [f"made{i}" for i in range(n)]
    about = {field.name: getattr(stored.manifest, field.name) for field in dataclasses.fields(About)}
    for i, pack_id in enumerate(ids):
        rng = np.random.default_rng(i)

        def changed(x: np.ndarray, rng: np.random.Generator = rng) -> np.ndarray:
            return x if x.ndim < 2 else (x * (1 + 0.05 * rng.standard_normal(x.shape))).astype(x.dtype)

        own = {**about, "id": pack_id, "base": binding(base), "compatible": ()}
        params = jax.tree.map(lambda x: changed(np.asarray(x)), stored.params)
        write_pack(directory / pack_id, params, About(**own), card=f"# {pack_id}\n")
    return ids
