"""The key/value cache: a pytree that every step takes, donates and returns anew."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from mbjax.core.config import ModelConfig
from mbjax.kernels.layers import zeros
from mbjax.kernels.twins import quantize_kv

_ONE_BY_ONE = 16  # rows that are written by an update each, in place everywhere; of more a scatter is made
KV_DTYPES = ("float32", "bfloat16", "int8")


@flax.struct.dataclass
class LayerKV:
    """Keys (rotated) and values of one layer; int8 ones have a scale for each position and head."""

    k: jax.Array  # [N, K, S, E]
    v: jax.Array  # [N, K, S, E]
    k_scales: jax.Array | None = None  # float32 [N, K, S]
    v_scales: jax.Array | None = None

    def arrays(self) -> tuple[jax.Array, ...]:
        """Those that there are."""
        return tuple(x for x in (self.k, self.v, self.k_scales, self.v_scales) if x is not None)


@flax.struct.dataclass
class StackedKV:
    """The same of all layers in one array, as the kernel takes them: one argument of a step instead of many.

    Stands for `count` layers from `first` on; the arrays are always whole.
    """

    values: jax.Array  # [L, 2, N, K, S, E], keys and values
    scales: jax.Array  # float32 [L, 2, N, K, S] for int8, else [0]
    first: int = flax.struct.field(pytree_node=False)
    count: int = flax.struct.field(pytree_node=False)

    def unstacked(self) -> tuple[LayerKV, ...]:
        """One by one; copies."""
        own, has_scales = range(self.first, self.first + self.count), self.scales.size > 0
        return tuple(LayerKV(*self.values[i], *(self.scales[i] if has_scales else ())) for i in own)

    def holding(self, layers: tuple[LayerKV, ...]) -> "StackedKV":
        """The same with these layers' arrays in it."""
        values, scales = self.values, self.scales
        for i, kv in enumerate(layers, start=self.first):
            values = values.at[i].set(jnp.stack([kv.k, kv.v]))
            if kv.k_scales is not None and kv.v_scales is not None:
                scales = scales.at[i].set(jnp.stack([kv.k_scales, kv.v_scales]))
        return dataclasses.replace(self, values=values, scales=scales)


Layers = tuple[LayerKV, ...] | StackedKV


@flax.struct.dataclass
class Cache:
    """KV state of N lanes, and which of them a step is for. Positions at or beyond `length` hold nothing of value; the
    next write replaces them."""

    layers: Layers  # L of them; separate arrays, so that a step updates each in place, or stacked for the kernel
    length: jax.Array  # int32 [N], valid positions of each lane
    experts: tuple[Layers | None, ...] = ()  # per pack, the layers of its expert; None without one
    tap: jax.Array | None = None  # [N, S, D], kept so that an expert switched on later can read what came before
    seats: jax.Array | None = None  # int32 [B], the lane of each row of a step, no two alike; None: all N in order

    @property
    def capacity(self) -> int:
        return self.layers.values.shape[4] if isinstance(self.layers, StackedKV) else self.layers[0].k.shape[2]

    @property
    def starts(self) -> jax.Array:
        """Where each row's next position is: int32 [B]."""
        return self.length if self.seats is None else self.length[self.seats]

    def part(self, start: int, stop: int) -> Layers:
        """Layers [start, stop)."""
        if isinstance(self.layers, StackedKV):
            return dataclasses.replace(self.layers, first=start, count=stop - start)
        return self.layers[start:stop]

    def with_part(self, start: int, new: Layers) -> "Cache":
        """The cache with the layers from `start` on in their new state."""
        if isinstance(new, StackedKV):
            layers = dataclasses.replace(new, first=0, count=new.values.shape[0])
        else:
            assert not isinstance(self.layers, StackedKV)
            layers = (*self.layers[:start], *new, *self.layers[start + len(new) :])
        return dataclasses.replace(self, layers=layers)


def init_cache(
    config: ModelConfig,
    batch: int,
    capacity: int,
    dtype: str = "float32",
    experts: tuple[ModelConfig | None, ...] = (),
    stacked: bool = False,
) -> Cache:
    """An empty cache for `batch` lanes of at most `capacity` positions; `dtype` is one of KV_DTYPES.

    `experts` is the shape of each pack's expert, None for a pack without one; where there is any, tap states are kept.
    `stacked` is the form for bundled layers, see `fused`.
    """

    def layers(shape_of: ModelConfig) -> Layers:
        shape = (batch, shape_of.n_kv_heads, capacity, shape_of.head_dim)
        if stacked:
            return _stacked(shape_of.n_layers, shape, dtype)
        return tuple(_empty(shape, dtype) for _ in range(shape_of.n_layers))

    tap_dtype = "bfloat16" if dtype == "int8" else dtype

    return Cache(
        layers=layers(config),
        length=jnp.zeros((batch,), jnp.int32),
        experts=tuple(None if expert is None else layers(expert) for expert in experts),
        tap=jnp.zeros((batch, capacity, config.d_model), tap_dtype) if any(experts) else None,
    )


def append(kv: LayerKV, k: jax.Array, v: jax.Array, start: jax.Array, seats: jax.Array | None = None) -> LayerKV:
    """Writes k and v [B, T, K, E] at positions `start[b]` onwards of lane `seats[b]`. The caller keeps start + T <= S."""

    def place(lanes: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
        return write_rows(lanes, new, start, seats, axis=1)

    k_new, v_new = (x.swapaxes(1, 2) for x in (k, v))
    if kv.k_scales is None or kv.v_scales is None:
        return LayerKV(place(kv.k, k_new.astype(kv.k.dtype), start), place(kv.v, v_new.astype(kv.v.dtype), start))
    (k_new, k_scales), (v_new, v_scales) = (quantize_kv(x.astype(jnp.float32)) for x in (k_new, v_new))
    return LayerKV(
        place(kv.k, k_new, start),
        place(kv.v, v_new, start),
        place(kv.k_scales, k_scales, start),
        place(kv.v_scales, v_scales, start),
    )


def write_rows(lanes: jax.Array, new: jax.Array, start: jax.Array, seats: jax.Array | None, axis: int) -> jax.Array:
    """Writes new [B, ...] into lanes [N, ...], row b from `start[b]` on along `axis` of its lane `seats[b]`."""
    if seats is None:
        update = jax.lax.dynamic_update_slice_in_dim
        return jax.vmap(lambda lane, row, at: update(lane, row, at, axis=axis))(lanes, new, start)
    if new.shape[0] > _ONE_BY_ONE:
        at = start[:, None] + jnp.arange(new.shape[axis + 1], dtype=jnp.int32)[None, :]  # [B, T]
        rows = new.swapaxes(1, axis + 1)  # indices apart from one another come first
        return lanes.at[(seats[:, None], *[slice(None)] * axis, at)].set(rows, unique_indices=True)
    zero = jnp.int32(0)
    for b in range(new.shape[0]):
        at = (seats[b], *(start[b] if i == axis else zero for i in range(new.ndim - 1)))
        lanes = jax.lax.dynamic_update_slice(lanes, new[b : b + 1], at)
    return lanes


def _stacked(n_layers: int, shape: tuple[int, ...], dtype: str) -> StackedKV:
    whole = (n_layers, 2, *shape)
    scales = zeros(whole[:-1] if dtype == "int8" else (0,), "float32")
    return StackedKV(zeros(whole, dtype), scales, 0, n_layers)


def _empty(shape: tuple[int, ...], dtype: str) -> LayerKV:
    def values() -> jax.Array:
        return jnp.zeros(shape, dtype)

    def scales() -> jax.Array | None:
        return jnp.zeros(shape[:-1], jnp.float32) if dtype == "int8" else None

    return LayerKV(values(), values(), scales(), scales())
