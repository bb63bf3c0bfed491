"""The one form that all packs of an engine are brought into, and which packs a directory holds."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.config import ModelConfig
from mbjax.core.slots import Slot, SlotLayout, layout_for
from mbjax.io.load import LoadedBase
from mbjax.io.pack_check import list_packs, summarise_pack
from mbjax.io.pack_manifest import Manifest
from mbjax.io.pack_tensors import announced, config_differences


@dataclasses.dataclass(frozen=True)
class PackForm:
    """The layout of all packs, each of which stays whole in one buffer: one transfer, one argument of a program."""

    layout: SlotLayout

    @classmethod
    def of(cls, base: LoadedBase, paths: Sequence[Path]) -> "PackForm":
        """The smallest that the packs at these paths fit into; those that do not fit the base are passed over."""
        manifests = [summarise_pack(path).manifest for path in paths]
        return cls.for_manifests(base.config, [m for m in manifests if m is not None])

    @classmethod
    def for_manifests(cls, config: ModelConfig, manifests: Sequence[Manifest]) -> "PackForm":
        fitting = [m for m in manifests if not config_differences(m.base.config, config, expert=m.expert is not None)]
        layout = layout_for([announced(m.expert, m.lora, config, m.dtype) for m in fitting], config)
        if not _on_cpu():  # whose kernels take ranks of 16, 32, 64
            layout = dataclasses.replace(layout, rank=max(16, 1 << (layout.rank - 1).bit_length()))
        return cls(layout)

    @property
    def bytes(self) -> int:
        """Of one pack, in either memory."""
        return 4 * self.layout.n_values()

    @property
    def shares_memory(self) -> bool:
        """Whether a pack on the device is the host's own buffer: JAX on the CPU takes it over without a copy."""
        return _on_cpu()

    def shapes(self) -> Slot:
        """A pack on the device, as shapes and dtypes."""
        return jax.eval_shape(self._slot, jax.ShapeDtypeStruct((self.layout.n_values(),), jnp.float32))

    def kept(self, buffer: np.ndarray) -> np.ndarray | jax.Array:
        """A slot's buffer as host memory keeps it: for an accelerator in locked pages, which are copied faster."""
        return buffer if _on_cpu() else jax.device_put(buffer, _memory("pinned_host"))

    def placed(self, buffer: np.ndarray | jax.Array) -> Slot:
        """A slot's buffer on the device, in one transfer; nothing is compiled."""
        if _on_cpu():
            return jax.device_put(self._slot(np.asarray(buffer)))
        return self._slot(jax.device_put(buffer, _memory("device")))

    def _slot(self, buffer: Any) -> Slot:
        """With an expert's ends where they are views of the same memory."""
        return Slot(buffer, self.layout, self.layout.ends_of(buffer) if _on_cpu() else None)  # pyright: ignore[reportArgumentType]


def find_packs(directory: Path | None) -> dict[str, Path]:
    """Paths by id of the packs that a directory holds, those with a problem at first sight left out."""
    summaries = list_packs(directory) if directory is not None else []
    return {summary.id: summary.path for summary in summaries if not summary.problems}


def stamp_of(path: Path | None) -> object:
    """What changes when a directory's own entries or the files in it do; None where it cannot be looked at."""
    if path is None:
        return None
    try:
        inside = [(entry.name, entry.stat()) for entry in sorted(path.iterdir())]
        return path.stat().st_mtime_ns, tuple((name, own.st_mtime_ns, own.st_size) for name, own in inside)
    except OSError:
        return None


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def _memory(kind: str) -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0], memory_kind=kind)
