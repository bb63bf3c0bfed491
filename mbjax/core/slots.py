"""The slot layout: one shape that every pack of an engine is zero-padded into, so that a swap reuses the program.

Zero padding changes nothing: rows of rank that are zero add zero, a layer whose output maps are zero adds zero to its
residual stream, and an expert whose output map is zero adds zero to h.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.config import ModelConfig
from mbjax.core.expert import declare_expert
from mbjax.core.lora import TARGETS, Lora, declare_lora, map_shapes
from mbjax.core.pack import Pack
from mbjax.core.param import abstract_params
from mbjax.kernels.bundle import MAPS, LayerPlace, MapPlace, in_huge_pages
from mbjax.kernels.layers import DeltaPlace
from mbjax.kernels.part import ALIGN, Part

_EXPERT_MAPS = (*(f".attn.{name}" for name in MAPS[:4]), *(f".mlp.{name}" for name in MAPS[4:]))
_EXPERT_VECTORS = (".attn.norm", ".mlp.norm", *(f".attn.{name}" for name in ("q_bias", "k_bias", "v_bias")))
_EXPERT_VECTORS += (".attn.q_norm", ".attn.k_norm")


@dataclasses.dataclass(frozen=True)
class SlotLayout:
    """The shape that all slots share. `maps[layer]` names the targets with a delta; `expert` is the widest expert."""

    config: ModelConfig
    rank: int
    maps: tuple[tuple[str, ...], ...]
    expert: ModelConfig | None

    def pack_shapes(self) -> Pack:
        """The pack that a slot holds, as shapes and dtypes."""
        lora = None
        if any(self.maps):
            layers = [
                declare_lora(self.config, self.rank, 1.0, maps, [i]).layers[i] for i, maps in enumerate(self.maps)
            ]
            lora = Lora(tuple(layer if maps else None for layer, maps in zip(layers, self.maps, strict=True)))
        expert = None if self.expert is None else declare_expert(self.config, self.expert)
        return abstract_params(Pack(expert=expert, lora=lora))

    def delta_places(self, layer: int) -> tuple[DeltaPlace, ...]:
        """Where the deltas of a layer lie, in the order of `bundle.MAPS`."""
        leaves = _leaves(self)

        def place(target: str) -> DeltaPlace:
            if target not in self.maps[layer]:
                return DeltaPlace(0, 0, 0, 0)
            path = f".lora.layers[{layer}].{target}"
            a, b, scale = (leaves[f"{path}.{part}"].start for part in ("a", "b", "scale"))
            return DeltaPlace(a, b, scale, self.rank)

        return tuple(place(target) for target in MAPS)

    def expert_places(self) -> tuple[LayerPlace, ...]:
        """Where the layers of the expert lie, in bytes."""
        expert, starts = self.expert, {path: leaf.start for path, leaf in _leaves(self).items()}
        if expert is None:
            return ()
        n_in = [n for _, n in map_shapes(expert).values()]
        lengths = [expert.d_model, expert.d_model, *(out for out, _ in list(map_shapes(expert).values())[:3])]
        lengths += [expert.head_dim, expert.head_dim]

        def place(i: int) -> LayerPlace:
            at = {name: 4 * starts.get(f".expert.layers[{i}]{name}", -1) for name in (*_EXPERT_MAPS, *_EXPERT_VECTORS)}
            maps = [MapPlace(at[name], 32, n, 0, False, 0) for name, n in zip(_EXPERT_MAPS, n_in, strict=True)]
            vectors = [(at[name], n) for name, n in zip(_EXPERT_VECTORS, lengths, strict=True)]
            return LayerPlace(tuple(maps), tuple(vectors))

        return tuple(place(i) for i in range(expert.n_layers))

    def ends_of(self, buffer: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """The expert's two ends as views of a slot's buffer; None without an expert."""
        if self.expert is None:
            return None
        into, out = (_leaves(self)[f".expert.{name}"].of(buffer) for name in ("into", "out"))
        return into, out

    def n_values(self) -> int:
        """float32 values of one slot's buffer."""
        return sum(_aligned(math.prod(leaf.shape)) for leaf in _leaves(self).values())


class _Leaf(NamedTuple):
    """Where a leaf lies in a slot's buffer, in float32 values, and its shape."""

    start: int
    shape: tuple[int, ...]

    def of(self, buffer: np.ndarray) -> np.ndarray:
        return buffer[self.start : self.start + math.prod(self.shape)].reshape(self.shape)


@functools.lru_cache(maxsize=64)
def _leaves(layout: SlotLayout) -> dict[str, _Leaf]:
    """The leaves of a slot by key path, in their order. Kept: every swap asks for it, and it takes milliseconds."""
    found, at = {}, 0
    for path, leaf in jax.tree.leaves_with_path(layout.pack_shapes()):
        found[jax.tree_util.keystr(path)] = _Leaf(at, leaf.shape)
        at += _aligned(math.prod(leaf.shape))
    return found


@flax.struct.dataclass
class Slot:
    """A pack in the form of a layout, in one buffer, as kernels take it.

    What XLA multiplies itself, an expert's two ends, may be given once more as arrays that lie in the same memory: it
    would copy them out of the buffer at every token.
    """

    values: jax.Array  # float32 [layout.n_values()]
    layout: SlotLayout = flax.struct.field(pytree_node=False)
    ends: tuple[jax.Array, jax.Array] | None = None  # into [De, D] and out [D, De]


def as_pack(pack: Pack | Slot) -> Pack:
    """The pack that a slot holds; a pack as it is."""
    if not isinstance(pack, Slot):
        return pack
    opened = from_slot(pack.values, pack.layout)
    if pack.ends is None or opened.expert is None:
        return opened
    into, out = pack.ends
    return dataclasses.replace(opened, expert=dataclasses.replace(opened.expert, into=into, out=out))


def layout_for(packs: Sequence[Pack], config: ModelConfig) -> SlotLayout:
    """The smallest layout that all the given packs (arrays or shapes) fit into.

    Raises ValueError where two experts differ in anything but their depth.
    """
    maps, rank = [set() for _ in range(config.n_layers)], 1
    experts = [pack.expert.config for pack in packs if pack.expert is not None]
    for pack in packs:
        for i, layer in enumerate(pack.lora.layers if pack.lora is not None else ()):
            for target in TARGETS:
                delta = getattr(layer, target) if layer is not None else None
                if delta is not None:
                    maps[i].add(target)
                    rank = max(rank, delta.a.shape[0])
    deepest = max(experts, key=lambda expert: expert.n_layers, default=None)
    for expert in experts:
        if dataclasses.replace(expert, n_layers=1) != dataclasses.replace(experts[0], n_layers=1):
            raise ValueError(f"the packs' experts differ in width: {expert} and {experts[0]}")
    ordered = tuple(tuple(target for target in TARGETS if target in found) for found in maps)
    return SlotLayout(config, rank, ordered, deepest)


def to_slot(pack: Pack, layout: SlotLayout) -> np.ndarray:
    """The pack, zero-padded, as one contiguous float32 buffer [layout.n_values()].

    Raises ValueError where it does not fit (another target, more rank, more or wider expert layers).
    """
    buffer = in_huge_pages(4 * layout.n_values()).view(np.float32)
    have = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(pack)}
    for path, want in _leaves(layout).items():
        leaf = have.pop(path, None)
        if leaf is not None:
            if len(leaf.shape) != len(want.shape) or any(n > m for n, m in zip(leaf.shape, want.shape, strict=True)):
                raise ValueError(f"{path}: {leaf.shape} does not fit the slot's {want.shape}")
            want.of(buffer)[tuple(slice(n) for n in leaf.shape)] = np.asarray(leaf)
    if have:
        raise ValueError(f"the slot has no place for {min(have)}")
    return buffer


def from_slot(buffer: jax.Array, layout: SlotLayout) -> Pack:
    """The padded pack that a slot's buffer [n_values] holds; pure, to be jitted. Low-rank parts stay where they are, see
    `kernels.part`."""
    leaves = _leaves(layout)

    def one(path: Any, _: Any) -> Any:
        name = jax.tree_util.keystr(path)
        part = Part(buffer, jnp.int32(leaves[name].start), leaves[name].shape)
        return part if name.startswith(".lora") else part.opened()

    return jax.tree.map_with_path(one, layout.pack_shapes())


def _aligned(n: int) -> int:
    return -(-n // ALIGN) * ALIGN
