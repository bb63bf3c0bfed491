"""The packs of a directory, brought into the one shape that the engine's programs are compiled for."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from mbjax.core.fused import Bundle
from mbjax.core.pack import Pack
from mbjax.core.router import MAX_ACTIVE
from mbjax.core.slots import Slot, SlotLayout, from_slot, layout_for, to_slot
from mbjax.engine.programs import tree_bytes
from mbjax.errors import InputError, MbjaxError
from mbjax.io.load import LoadedBase
from mbjax.io.pack_check import list_packs
from mbjax.io.pack_load import LoadedPack, load_pack
from mbjax.io.pack_manifest import Manifest
from mbjax.io.pack_tensors import announced, config_differences


class PackSlots:
    """Packs by id, loaded when first asked for.

    The slot layout is fixed here, from the packs that the directory holds now: the largest rank, all targets, the
    deepest expert. A pack that is put there later must fit into it.
    """

    def __init__(self, base: LoadedBase, directory: Path | None, *, force_base: bool = False) -> None:
        self._base, self.directory, self._force_base = base, directory, force_base
        self._slots: dict[str, Pack | Slot] = {}
        self._unusable: dict[str, str] = {}
        self._whole = isinstance(base.params.layers, Bundle)  # the kernel reads slots as they are
        summaries = list_packs(directory) if directory is not None else []
        sound = {summary.id: summary for summary in summaries if not summary.problems}
        self.paths = {pack_id: summary.path for pack_id, summary in sound.items()}
        manifests = [summary.manifest for summary in sound.values() if summary.manifest is not None]
        shapes = [announced(m.expert, m.lora, base.config, m.dtype) for m in manifests if _fits(m, base)]
        self.layout = layout_for(shapes, base.config)

    def ids(self) -> list[str]:
        return sorted(self.paths)

    def loaded_bytes(self) -> int:
        """Bytes of the packs on the device."""
        return sum(tree_bytes(pack) for pack in self._slots.values())

    def slot_shapes(self) -> Pack | Slot:
        """What `use` gives for each id, as shapes and dtypes."""
        if self._whole:
            return Slot(jax.ShapeDtypeStruct((self.layout.n_values(),), jnp.float32), self.layout)  # pyright: ignore[reportArgumentType]
        return self.layout.pack_shapes()

    def use(self, ids: tuple[str, ...]) -> tuple[Pack | Slot, ...]:
        """The packs of these ids in slot form. Raises InputError for an unknown id and for too many."""
        if len(ids) > MAX_ACTIVE:
            raise InputError(f"{len(ids)} packs asked for ({', '.join(ids)}); at most {MAX_ACTIVE} work together")
        return tuple(self._slot(pack_id) for pack_id in ids)

    def unusable(self, pack_id: str) -> str | None:
        """Why a pack cannot be used, in one line; None where it can, and it is then loaded. A pack that failed once
        is not tried again."""
        if pack_id not in self._unusable:
            try:
                self._slot(pack_id)
            except MbjaxError as error:
                self._unusable[pack_id] = str(error)
        return self._unusable.get(pack_id)

    def _slot(self, pack_id: str) -> Pack | Slot:
        if pack_id not in self._slots:
            slot = fill_slot(self._load(pack_id).params, self.layout)
            self._slots[pack_id] = slot if self._whole else _unpack(self.layout)(slot.values)
        return self._slots[pack_id]

    def _load(self, pack_id: str) -> LoadedPack:
        if pack_id not in self.paths:
            known = ", ".join(self.ids()) or "none"
            raise InputError(f"no pack '{pack_id}' in {self.directory or 'use: no pack directory'} (there: {known})")
        return load_pack(self.paths[pack_id], self._base, force_base=self._force_base)


def _fits(manifest: Manifest, base: LoadedBase) -> bool:
    return not config_differences(manifest.base.config, base.config, expert=manifest.expert is not None)


def fill_slot(pack: Pack, layout: SlotLayout) -> Slot:
    """The pack padded into a slot on the device, in one transfer."""
    try:
        return Slot(jax.device_put(to_slot(pack, layout)), layout)
    except ValueError as error:
        raise InputError(f"the pack does not fit the engine's slots ({error}); start again with it installed") from None


_programs: dict[SlotLayout, jax.stages.Compiled] = {}


def _unpack(layout: SlotLayout) -> jax.stages.Compiled:
    if layout not in _programs:
        buffer = jax.ShapeDtypeStruct((layout.n_values(),), jnp.float32)
        _programs[layout] = jax.jit(partial(from_slot, layout=layout)).lower(buffer).compile()
    return _programs[layout]
