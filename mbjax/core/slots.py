"""The slot layout: one shape that every pack of an engine is zero-padded into, so that a swap reuses the program.

Zero padding changes nothing: rows of rank that are zero add zero, a layer whose output maps are zero adds zero to its
residual stream, and an expert whose output map is zero adds zero to h.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np

from mbjax.core.config import ModelConfig
from mbjax.core.expert import declare_expert
from mbjax.core.lora import TARGETS, Lora, declare_lora
from mbjax.core.pack import Pack
from mbjax.core.param import abstract_params

_ALIGN = 16  # float32 values: every leaf of a slot starts on a cache line


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

    def n_values(self) -> int:
        """float32 values of one slot's buffer."""
        return sum(_aligned(math.prod(leaf.shape)) for leaf in jax.tree.leaves(self.pack_shapes()))


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
    shapes, start = layout.pack_shapes(), 0
    buffer = np.zeros(layout.n_values(), np.float32)
    have = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(pack)}
    for path, want in jax.tree.leaves_with_path(shapes):
        leaf = have.pop(jax.tree_util.keystr(path), None)
        if leaf is not None:
            if len(leaf.shape) != len(want.shape) or any(n > m for n, m in zip(leaf.shape, want.shape, strict=True)):
                raise ValueError(f"{jax.tree_util.keystr(path)}: {leaf.shape} does not fit the slot's {want.shape}")
            place = buffer[start : start + math.prod(want.shape)].reshape(want.shape)
            place[tuple(slice(n) for n in leaf.shape)] = np.asarray(leaf, np.float32)
        start += _aligned(math.prod(want.shape))
    if have:
        raise ValueError(f"the slot has no place for {min(have)}")
    return buffer


def from_slot(buffer: jax.Array, layout: SlotLayout) -> Pack:
    """The padded pack that a slot's buffer [n_values] holds; pure, to be jitted."""
    shapes, start, leaves = layout.pack_shapes(), 0, []
    for want in jax.tree.leaves(shapes):
        size = math.prod(want.shape)
        leaves.append(jax.lax.dynamic_slice_in_dim(buffer, start, size).reshape(want.shape))
        start += _aligned(size)
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _aligned(n: int) -> int:
    return -(-n // _ALIGN) * _ALIGN
