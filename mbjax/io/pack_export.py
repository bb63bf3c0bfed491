"""Packs to PEFT adapters, adapters to packs, and packs to another dtype: what is behind `mbjax pack export`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mbjax.errors import InputError
from mbjax.io.pack_dir import About, StoredPack, read_pack, write_pack
from mbjax.io.pack_load import binding
from mbjax.io.pack_manifest import DTYPES, DataSource, Manifest, created_by
from mbjax.io.pack_quant import SCHEMES
from mbjax.io.pack_scores import SCORES_HEADING
from mbjax.io.peft import export_peft, import_peft, is_peft

if TYPE_CHECKING:
    from mbjax.io.load import LoadedBase


PACK_DTYPES = (*DTYPES, *SCHEMES)


@dataclasses.dataclass(frozen=True)
class Naming:
    """What is to be said of a new pack. Where None, an old pack's words stay; of an adapter the id is then the new
    directory's name, the version 1.0.0 and the licence not stated."""

    id: str | None = None
    name: str | None = None
    version: str | None = None
    licence: str | None = None


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written, and in one line each what the receiver should know."""

    path: Path
    form: str  # "pack" or "peft"
    notes: tuple[str, ...]


def export(
    source: Path,
    out: Path,
    load_base: Callable[[], "LoadedBase"],
    naming: Naming | None = None,
    dtype: str | None = None,
) -> Exported:
    """Writes a PEFT adapter as a pack for a base; a pack as a PEFT adapter or, where a dtype is given, as a pack with
    its matrices in that dtype (see `write_pack`).

    `load_base` is called only where a base is needed. Raises InputError and FailureError as reading and writing do.
    """
    naming = naming or Naming()
    if dtype is not None and dtype not in PACK_DTYPES:
        raise InputError(f"dtype '{dtype}' is not known; choose one of {', '.join(PACK_DTYPES)}")
    if is_peft(source):
        return _adopted(source, out, load_base(), naming, dtype or "float32")
    stored = read_pack(source)
    if dtype is not None:
        return _rewritten(stored, out, naming, dtype)
    export_peft(out, stored.params, stored.manifest.base.name)
    return Exported(out, "peft", _left_behind(stored.manifest))


def _rewritten(stored: StoredPack, out: Path, naming: Naming, dtype: str) -> Exported:
    given = {key: value for key, value in dataclasses.asdict(naming).items() if value is not None}
    kept = {field.name: getattr(stored.manifest, field.name) for field in dataclasses.fields(About)}
    card, cut, _ = stored.card.partition(SCORES_HEADING)
    write_pack(
        out,
        stored.params,
        About(**(kept | given)),
        card=f"{card.rstrip()}\n\nMatrices in {dtype}.\n",
        dtype=dtype,
        route=stored.route,
        more_files=stored.more_files,
    )
    lost = "the scores stay behind, they are those of the old matrices: `mbjax pack eval PACK TEST.jsonl --write`"
    return Exported(out, "pack", (lost,) if cut or stored.scores else ())


def _adopted(source: Path, out: Path, base: "LoadedBase", naming: Naming, dtype: str) -> Exported:
    adapter = import_peft(source, base.config)
    made_for = adapter.base_model or "a model that it does not name"
    pack_id = naming.id or out.absolute().name
    about = About(
        id=pack_id,
        name=naming.name or pack_id,
        version=naming.version or "1.0.0",
        base=binding(base),
        licence=naming.licence or "not stated",
        created_by=created_by("imported from a PEFT adapter"),
        data=(DataSource("not stated", "not stated", f"PEFT adapter for {made_for}"),),
    )
    text = f"Imported from a PEFT LoRA adapter made for {made_for}. Not evaluated here: `mbjax pack eval` does that."
    write_pack(out, adapter.pack, about, card=f"# {about.name}\n\n{text}\n", dtype=dtype)
    return Exported(out, "pack", _base_notes(adapter.base_model, base.name))


def _base_notes(made_for: str | None, base: str) -> tuple[str, ...]:
    """Shapes fit, or the import would have failed; weights cannot be compared, only names."""
    if made_for is None:
        return (f"the adapter names no base model; it was bound to {base}",)
    if _plain(made_for) == _plain(base):
        return ()
    return (f"the adapter was made for {made_for}; it was bound to {base}: make sure that they are the same model",)


def _plain(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()


def _left_behind(manifest: Manifest) -> tuple[str, ...]:
    return ("the route key stays behind: PEFT has no form for it",) if manifest.route is not None else ()
