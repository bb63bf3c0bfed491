"""Quantised layers in the form that the CPU kernel takes whole: all weights of a model in one array.

`bundled` makes it of a base; the packs come as slots, the cache stacked. What does not come so runs operation by
operation over the same weights, and differs from the kernel by float32 rounding (where that moves a value across a
border of the int8 rounding of activations, by one step of it).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.base import Attention, Base, Layer, Mlp
from mbjax.core.cache import StackedKV
from mbjax.core.config import ModelConfig
from mbjax.core.quant import QTensor
from mbjax.core.slots import Slot
from mbjax.kernels import bundle, layers


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each layer lies, and the shapes [out, in] of its maps, in the order of `bundle.MAPS`."""

    places: tuple[bundle.LayerPlace, ...]
    shapes: tuple[tuple[int, int], ...]

    def __hash__(self) -> int:  # asked for at every step; the first place tells layouts apart
        return hash((len(self.places), self.places[:1], self.shapes))


@flax.struct.dataclass
class Bundle:
    """The layers of a base in one array; sliced like the tuple of them."""

    weights: jax.Array  # uint8 [n]
    layout: Layout = flax.struct.field(pytree_node=False)

    def __len__(self) -> int:
        return len(self.layout.places)

    def __getitem__(self, which: slice) -> "Bundle":
        layout = dataclasses.replace(self.layout, places=self.layout.places[which])
        return dataclasses.replace(self, layout=layout)

    def opened(self) -> tuple[Layer, ...]:
        """One by one; copies."""
        return tuple(self._layer(place) for place in self.layout.places)

    def _layer(self, place: bundle.LayerPlace) -> Layer:
        parts = bundle.unpack(self.weights, place)._asdict()
        maps: dict[str, Any] = {
            name: QTensor(*parts[name], shape=shape, tiled=True)
            for name, shape in zip(bundle.MAPS, self.layout.shapes, strict=True)
        }
        attn = {name: maps[name] for name in ("q", "k", "v", "o")}
        vectors = {name: parts[name] for name in ("q_bias", "k_bias", "v_bias", "q_norm", "k_norm")}
        mlp = Mlp(parts["mlp_norm"], maps["gate"], maps["up"], maps["down"])
        return Layer(Attention(parts["attn_norm"], **attn, **vectors), mlp)


def bundled(params: Base, config: ModelConfig, copied: Callable[[], None] = lambda: None) -> Base:
    """The base in that form, where every map of its layers is tiled and the kernels run here; else as it is.

    `params` may be shapes. `copied()` is called as it goes along: what was copied so far is not read again.
    """
    if isinstance(params.layers, Bundle) or not layers.compiled_for(config.head_dim, 0):
        return params
    parts = [_parts(layer) for layer in params.layers]
    if not all(isinstance(w, QTensor) and w.tiled for part in parts for w in part[: len(bundle.MAPS)]):
        return params
    weights = tuple(
        bundle.LayerWeights(*(w.arrays() for w in part[: len(bundle.MAPS)]), *part[len(bundle.MAPS) :])
        for part in parts
    )
    places, n_bytes = bundle.place_layers(weights)
    layout = Layout(places, tuple(w.shape for w in parts[0][: len(bundle.MAPS)]))
    if isinstance(parts[0][0].values, jax.ShapeDtypeStruct):
        return dataclasses.replace(params, layers=Bundle(jax.ShapeDtypeStruct((n_bytes,), jnp.uint8), layout))  # pyright: ignore[reportArgumentType]
    buffer = bundle.in_huge_pages(n_bytes)
    for place, layer in zip(places, weights, strict=True):
        bundle.fill(buffer, place, layer)
        copied()
    own = {}
    for name in ("embed", "head"):
        own[name] = _in_huge_pages(getattr(params, name))
        copied()
    return dataclasses.replace(params, layers=Bundle(jax.device_put(buffer), layout), **own)


def takes(part: Any, kvs: Any, packs: tuple[Any, ...]) -> bool:
    """Whether `run` can take these layers, caches and packs."""
    return (
        isinstance(part, Bundle)
        and isinstance(kvs, StackedKV)
        and len(packs) <= layers.MOST_PACKS
        and all(isinstance(pack, Slot) for pack in packs)
        and len({pack.layout for pack in packs}) <= 1
    )


def run(
    part: Bundle,
    h: jax.Array,
    positions: jax.Array,
    kvs: StackedKV,
    config: ModelConfig,
    slots: tuple[Any, ...] = (),
    gates: jax.Array | None = None,
    seats: jax.Array | None = None,
) -> tuple[jax.Array, StackedKV]:
    """As `base.run_layers`: h [B, T, D], positions int32 [B, T], each lane's in sequence, gates float32 [B, T, P].

    The deltas of `slots`, `Slot`s of one layout, are those of layers [kvs.first, kvs.first + kvs.count).
    """
    own = range(kvs.first, kvs.first + kvs.count)
    deltas = tuple(slots[0].layout.delta_places(i) for i in own) if slots else ()
    adapted = bool(slots) and any(place.rank for layer in deltas for place in layer)
    shape = layers.Shape(part.layout.places, kvs.first, config.n_heads, config.d_ff, config.rms_eps)
    shape = dataclasses.replace(shape, deltas=deltas) if adapted else shape
    values = tuple(slot.values for slot in slots) if adapted else ()
    return _call(part.weights, h, positions, kvs, config, values, gates if adapted else None, shape, seats)


def takes_expert(pack: Any, kvs: Any) -> bool:
    """Whether `run_expert` can take the expert of this pack, with these caches."""
    if not isinstance(pack, Slot) or not isinstance(kvs, StackedKV):
        return False
    expert = pack.layout.expert
    return expert is not None and layers.compiled_for(expert.head_dim, 0)


def run_expert(
    slot: Slot,
    h: jax.Array,
    positions: jax.Array,
    kvs: StackedKV,
    config: ModelConfig,
    seats: jax.Array | None = None,
) -> tuple[jax.Array, StackedKV]:
    """The layers of a slot's expert, float32 as they lie there; `config` is the expert's."""
    shape = layers.Shape(slot.layout.expert_places(), 0, config.n_heads, config.d_ff, config.rms_eps)
    return _call(slot.values, h, positions, kvs, config, (), None, shape, seats)


def _call(
    weights: jax.Array,
    h: jax.Array,
    positions: jax.Array,
    kvs: StackedKV,
    config: ModelConfig,
    slots: tuple[jax.Array, ...],
    gates: jax.Array | None,
    shape: layers.Shape,
    seats: jax.Array | None,
) -> tuple[jax.Array, StackedKV]:
    freq = jnp.asarray(config.inv_freq(), jnp.float32)
    angle = positions.astype(jnp.float32)[:, :, None] * freq[None, None, :]
    gates = jnp.zeros((*h.shape[:2], 0), jnp.float32) if gates is None else gates
    seats = jnp.arange(h.shape[0], dtype=jnp.int32) if seats is None else seats
    step = layers.Step(h.astype(jnp.float32), positions[:, 0], seats, jnp.cos(angle), jnp.sin(angle), gates)
    out, values, scales = layers.decoder_layers(step, weights, kvs.values, kvs.scales, slots, shape)
    return out.astype(h.dtype), dataclasses.replace(kvs, values=values, scales=scales)


def _parts(layer: Layer) -> tuple[Any, ...]:
    """In the order of `bundle.LayerWeights`."""
    a, m = layer.attn, layer.mlp
    maps = (a.q, a.k, a.v, a.o, m.gate, m.up, m.down)
    return (*maps, a.norm, m.norm, a.q_bias, a.k_bias, a.v_bias, a.q_norm, a.k_norm)


def _in_huge_pages(tree: Any) -> Any:
    """Copies of the large arrays of a tree that lie there."""

    def moved(x: jax.Array) -> jax.Array:
        if x.nbytes < 2**22:
            return x
        buffer = bundle.in_huge_pages(x.nbytes).view(x.dtype).reshape(x.shape)
        np.copyto(buffer, np.asarray(x))
        return jax.device_put(buffer)

    return jax.tree.map(moved, tree)
