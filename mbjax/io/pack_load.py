"""A pack made ready for a loaded base: bound by digest (promise P5), fitted in shape, on the device."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from mbjax.core.expert import expert_config
from mbjax.core.pack import Pack
from mbjax.core.quant import INT4, INT8, QTensor, for_accelerator, tile
from mbjax.core.quantize import Rule, quantize
from mbjax.io.base_forms import check_dtype
from mbjax.io.pack_dir import RouteKey, StoredPack, read_pack
from mbjax.io.pack_manifest import BaseBinding, Manifest
from mbjax.io.pack_quant import SCHEMES, is_transposed, stored_matrix
from mbjax.io.pack_tensors import config_differences, from_named, named
from mbjax.io.strict_json import refuse

if TYPE_CHECKING:
    from mbjax.io.load import LoadedBase

# Products need a low-rank b in groups along its few inputs, not as the file has it: 4 bits there would save little.
_RULES = {"int8": (Rule(".", INT8),), "int4": (Rule(r"\.lora\..*\.b$", INT8), Rule(".", INT4))}


@dataclasses.dataclass(frozen=True)
class LoadedPack:
    """A pack that fits its base. `notes` say in one line each what is not as it was in training."""

    params: Pack
    manifest: Manifest
    path: Path
    route: RouteKey | None
    notes: tuple[str, ...] = ()


def binding(base: "LoadedBase") -> BaseBinding:
    """What a manifest says of a base."""
    return BaseBinding(base.name, base.digest, base.tokenizer_digest, base.template_digest, base.config)


def load_pack(path: str | Path, base: "LoadedBase", *, dtype: str = "auto", force_base: bool = False) -> LoadedPack:
    """Reads a pack directory for use with `base`.

    dtype: of the matrices, `float32`, `bfloat16`, `int8`, `int4` (then `core.quant.QTensor`), or `auto`: as stored,
    quantised ones in float32 again, which is the form of an engine's slots. Norms, biases and scales are float32.

    The base must be the one the pack was trained on, or one that its manifest lists as compatible, by digest, and so
    must its tokenizer; `force_base` passes over that, but never over shapes, tap, rotation or heads that do not fit.
    Raises InputError of one line for that, and as `read_pack` does.
    """
    path = Path(path)
    check_dtype(dtype)
    stored = read_fitting_pack(path, base, force_base=force_base)
    notes = _notes(stored.manifest, binding(base))
    return LoadedPack(_in_dtype(stored, dtype, path), stored.manifest, path, stored.route, notes)


def read_fitting_pack(path: Path, base: "LoadedBase", *, force_base: bool = False) -> StoredPack:
    """`read_pack` of one that fits `base`, as `load_pack` says; in host memory."""

    def check(manifest: Manifest) -> None:
        if not force_base:
            _check_binding(path, manifest, binding(base))
        if lines := config_differences(manifest.base.config, base.config, expert=manifest.expert is not None):
            refuse(str(path), f"does not fit the base {base.name}: {'; '.join(lines)}")

    stored = read_pack(path, check)
    return dataclasses.replace(stored, params=_for_base(stored.params, base))


def _for_base(params: Pack, base: "LoadedBase") -> Pack:
    """With the expert's shape as this base states it: the same frequencies have several forms, and programs are
    compiled per form."""
    if params.expert is None:
        return params
    old = params.expert.config
    shape = expert_config(base.config, old.n_layers, old.d_model, old.d_ff)
    return dataclasses.replace(params, expert=dataclasses.replace(params.expert, config=shape))


def _in_dtype(stored: StoredPack, dtype: str, path: Path) -> Pack:
    if dtype not in SCHEMES:
        params = stored.params
        if dtype != "auto":
            params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)) if x.ndim == 2 else x, params)
        return jax.device_put(params)  # all at once: leaf by leaf takes longer than reading the file
    place = tile if jax.default_backend() == "cpu" else for_accelerator
    try:
        return quantize(_with_stored(stored, dtype, place), _RULES[dtype], place)[0]
    except ValueError as error:
        refuse(str(path), f"cannot be loaded in {dtype}: {error}; use float32")


def _with_stored(stored: StoredPack, dtype: str, place: Callable[[QTensor], QTensor]) -> Pack:
    """The pack with those matrices that its file holds in this very form as they are there."""
    leaves = named(stored.params)
    kept = {
        name: place(jax.tree.map(jnp.asarray, stored_matrix(name, leaf.shape, stored.tensors)))
        for name, leaf in leaves.items()
        if dtype == stored.manifest.quantisation and leaf.ndim == 2 and not is_transposed(name)
    }
    return from_named(stored.params, {**{name: jnp.asarray(leaf) for name, leaf in leaves.items()}, **kept})


def _check_binding(path: Path, manifest: Manifest, base: BaseBinding) -> None:
    tokenizers = {entry.digest: entry.tokenizer_digest for entry in (*manifest.compatible, manifest.base)}
    if base.digest not in tokenizers:
        trained = manifest.base
        refuse(
            str(path),
            f"was trained on {trained.name} ({trained.digest[:12]}), not on {base.name} ({base.digest[:12]}); "
            "load that base, or pass --force-base",
        )
    if tokenizers[base.digest] != base.tokenizer_digest:
        refuse(str(path), f"was trained with another tokenizer than that of {base.name}; pass --force-base to go on")


def _notes(manifest: Manifest, base: BaseBinding) -> tuple[str, ...]:
    known = {manifest.base.digest, *(entry.digest for entry in manifest.compatible)}
    notes = []
    if base.digest not in known:
        notes.append(f"{manifest.id} was trained on {manifest.base.name}, not on {base.name}: loaded by force")
    if base.template_digest != manifest.base.template_digest:
        notes.append(f"{manifest.id} was trained with another chat template than that of {base.name}")
    return tuple(notes)
