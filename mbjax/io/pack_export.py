"""Packs to PEFT adapters and adapters to packs: the function behind `mbjax pack export`."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mbjax.io.pack_dir import About, read_pack, write_pack
from mbjax.io.pack_load import binding
from mbjax.io.pack_manifest import DataSource, Manifest, created_by
from mbjax.io.peft import export_peft, import_peft, is_peft

if TYPE_CHECKING:
    from mbjax.io.load import LoadedBase


@dataclasses.dataclass(frozen=True)
class Naming:
    """What an adapter's directory does not say of it; the id is the new directory's name where none is given."""

    id: str | None = None
    name: str | None = None
    version: str = "1.0.0"
    licence: str = "not stated"


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written, and in one line each what the receiver should know."""

    path: Path
    form: str  # "pack" or "peft"
    notes: tuple[str, ...]


def export(source: Path, out: Path, load_base: Callable[[], "LoadedBase"], naming: Naming | None = None) -> Exported:
    """Writes a PEFT adapter as a pack for a base, or the `lora` part of a pack as a PEFT adapter, by what `source` is.

    `load_base` is called only where a base is needed. Raises InputError and FailureError as reading and writing do.
    """
    if is_peft(source):
        return _adopted(source, out, load_base(), naming or Naming())
    stored = read_pack(source)
    export_peft(out, stored.params, stored.manifest.base.name)
    return Exported(out, "peft", _left_behind(stored.manifest))


def _adopted(source: Path, out: Path, base: "LoadedBase", naming: Naming) -> Exported:
    adapter = import_peft(source, base.config)
    made_for = adapter.base_model or "a model that it does not name"
    pack_id = naming.id or out.absolute().name
    about = About(
        id=pack_id,
        name=naming.name or pack_id,
        version=naming.version,
        base=binding(base),
        licence=naming.licence,
        created_by=created_by("imported from a PEFT adapter"),
        data=(DataSource("not stated", "not stated", f"PEFT adapter for {made_for}"),),
    )
    text = f"Imported from a PEFT LoRA adapter made for {made_for}. Not evaluated here: `mbjax pack eval` does that."
    write_pack(out, adapter.pack, about, card=f"# {about.name}\n\n{text}\n")
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
