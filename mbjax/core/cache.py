"""The key/value cache: a pytree that every step takes, donates and returns anew."""

import flax.struct
import jax
import jax.numpy as jnp

from mbjax.core.config import ModelConfig
from mbjax.kernels.twins import quantize_kv

KV_DTYPES = ("float32", "bfloat16", "int8")


@flax.struct.dataclass
class LayerKV:
    """Keys (rotated) and values of one layer; int8 ones have a scale for each position and head."""

    k: jax.Array  # [B, K, S, E]
    v: jax.Array  # [B, K, S, E]
    k_scales: jax.Array | None = None  # float32 [B, K, S]
    v_scales: jax.Array | None = None


@flax.struct.dataclass
class Cache:
    """KV state of B lanes. Positions at or beyond `length` hold nothing of value; the next write replaces them."""

    layers: tuple[LayerKV, ...]  # L of them; separate arrays, so that a step updates each in place
    length: jax.Array  # int32 [B], valid positions of each lane
    experts: tuple[tuple[LayerKV, ...] | None, ...] = ()  # per pack, the layers of its expert; None without one
    tap: jax.Array | None = None  # [B, S, D], kept so that an expert switched on later can read what came before

    @property
    def capacity(self) -> int:
        return self.layers[0].k.shape[2]


def init_cache(
    config: ModelConfig,
    batch: int,
    capacity: int,
    dtype: str = "float32",
    experts: tuple[ModelConfig | None, ...] = (),
) -> Cache:
    """An empty cache for `batch` lanes of at most `capacity` positions; `dtype` is one of KV_DTYPES.

    `experts` is the shape of each pack's expert, None for a pack without one; where there is any, tap states are kept.
    """

    def layers(shape_of: ModelConfig) -> tuple[LayerKV, ...]:
        shape = (batch, shape_of.n_kv_heads, capacity, shape_of.head_dim)
        return tuple(_empty(shape, dtype) for _ in range(shape_of.n_layers))

    tap_dtype = "bfloat16" if dtype == "int8" else dtype

    return Cache(
        layers=layers(config),
        length=jnp.zeros((batch,), jnp.int32),
        experts=tuple(None if expert is None else layers(expert) for expert in experts),
        tap=jnp.zeros((batch, capacity, config.d_model), tap_dtype) if any(experts) else None,
    )


def append(kv: LayerKV, k: jax.Array, v: jax.Array, start: jax.Array) -> LayerKV:
    """Writes k and v [B, T, K, E] at positions `start[b]` onwards of each lane. The caller keeps start + T <= S."""

    def write(lane: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(lane, new, at, axis=1)

    place = jax.vmap(write)
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


def _empty(shape: tuple[int, ...], dtype: str) -> LayerKV:
    def zeros() -> jax.Array:
        return jnp.zeros(shape, dtype)

    def scales() -> jax.Array | None:
        return jnp.zeros(shape[:-1], jnp.float32) if dtype == "int8" else None

    return LayerKV(zeros(), zeros(), scales(), scales())
