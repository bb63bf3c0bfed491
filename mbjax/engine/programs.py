"""The compiled programs of one engine and the memory each needs, from shapes alone, before any weight is read."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.base import Base
from mbjax.core.cache import KV_DTYPES, Cache, init_cache
from mbjax.core.config import ModelConfig
from mbjax.core.decode import BUCKETS, choose, decode, prefill, prefill_fuse
from mbjax.core.fused import Bundle
from mbjax.core.pack import Mix, Pack
from mbjax.core.quant import is_quantized
from mbjax.core.sampling import Sampling, lanes_of
from mbjax.core.slots import Slot
from mbjax.engine.understanding import Understanding, joined
from mbjax.errors import InputError


def shapes_of(tree: Any) -> Any:
    """The tree's shapes and dtypes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays (or abstract arrays) of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def kv_dtype_of(params: Base, asked: str = "auto") -> str:
    """The dtype of keys and values: the one asked for, else that of the weights, bfloat16 for quantised ones.

    Raises InputError for one that is not known.
    """
    if asked not in ("auto", *KV_DTYPES):
        raise InputError(f"kv_dtype is '{asked}'; choose one of auto, {', '.join(KV_DTYPES)}")
    if asked != "auto":
        return asked
    return "bfloat16" if is_quantized(params.embed) else str(params.embed.dtype)


class Programs:
    """Prefill per bucket, the first choice of a token, and decoding, for a fixed batch and cache capacity.

    Each is compiled when it is first asked for and kept; nothing that a prompt or a sampling setting can hold
    compiles another. `params` and `packs`, those that take part, may be arrays or shapes.
    """

    def __init__(
        self,
        params: Base,
        config: ModelConfig,
        packs: tuple[Pack | Slot, ...] = (),
        *,
        batch: int,
        capacity: int,
        kv_dtype: str,
        understanding: Understanding | None = None,
    ) -> None:
        """`understanding` is that of other programs for the same base, batch and capacity, to be shared."""
        self.config, self.batch, self.capacity, self.kv_dtype = config, batch, capacity, kv_dtype
        self._params = shapes_of(params)
        self._mix = Mix(shapes_of(packs), _floats(batch, len(packs)))
        self._experts = tuple(_expert_config(pack) for pack in packs)
        self._stacked = isinstance(params.layers, Bundle)
        self.new_cache = partial(init_cache, config, batch, capacity, kv_dtype, self._experts, self._stacked)
        self._cache = jax.eval_shape(self.new_cache)
        self.understanding = understanding or Understanding(params, config, self._cache)
        self.rereads = any(_reads_from_start(pack, config.tap) for pack in packs)
        self._lanes = jax.eval_shape(lambda: lanes_of([(Sampling(), [])] * batch, config.vocab_size))
        self._ints = jax.ShapeDtypeStruct((batch,), jnp.int32)
        self._compiled: dict[str, jax.stages.Compiled] = {}
        self._temporaries: dict[str, int] = {}

    def prefill(self, size: int) -> Callable[..., tuple[jax.Array, Cache]]:
        """(params, mix, cache, tokens [B, size], n_valid [B]) -> (h [B, D], cache); the cache is donated.

        Always in the two phases that routing parts, so that how the packs were chosen changes no bit.
        """
        if self.rereads:
            return self.whole(size)
        first, second, no_pool = self.understanding.program(size), self.fuse(size), self.understanding.empty_pool()
        no_weights = jnp.asarray(np.zeros((self.batch, size), np.float32))

        def run(params: Base, mix: Mix, cache: Cache, tokens: jax.Array, n_valid: jax.Array) -> Any:
            h, layers, _, _ = first(params, cache.layers, cache.length, tokens, no_weights, n_valid, no_pool)
            return second(params, mix, joined(cache, layers), h, n_valid)

        return run

    def fuse(self, size: int) -> jax.stages.Compiled:
        """(params, mix, cache, h [B, size, D], n_valid [B]) -> (h [B, D], cache); the cache is donated."""
        h = self.understanding.tap_shape(size)
        return self._program(f"fuse_{size}", prefill_fuse, (2,), self._params, self._mix, self._cache, h, self._ints)

    def whole(self, size: int) -> jax.stages.Compiled:
        """`prefill` in one program, for packs that have a part in the understanding layers."""
        tokens = jax.ShapeDtypeStruct((self.batch, size), jnp.int32)
        return self._program(f"prefill_{size}", prefill, (2,), self._params, self._mix, self._cache, tokens, self._ints)

    def choose(self) -> jax.stages.Compiled:
        """(params, h [B, D], lanes, position [B]) -> (token [B], lanes); the lanes are donated."""
        h = jax.ShapeDtypeStruct((self.batch, self.config.d_model), self._params.embed.dtype)
        return self._program("choose", choose, (2,), self._params, h, self._lanes, self._ints)

    def decode(self) -> jax.stages.Compiled:
        """(params, mix, cache, token [B], lanes) -> (token, cache, lanes); cache and lanes are donated."""
        return self._program("decode", decode, (2, 4), self._params, self._mix, self._cache, self._ints, self._lanes)

    def new_layers(self) -> Any:
        """The base's layers of an empty cache."""
        return init_cache(self.config, self.batch, self.capacity, self.kv_dtype, (), self._stacked).layers

    def new_rest(self) -> Cache:
        """An empty cache without them."""
        shape = dataclasses.replace(self.config, n_layers=1, tap=0)
        whole = init_cache(shape, self.batch, self.capacity, self.kv_dtype, self._experts, self._stacked)
        return joined(whole, ())

    def all(self) -> dict[str, jax.stages.Compiled]:
        """Every program, compiled."""
        for size in BUCKETS:
            if size <= self.capacity:
                self.prefill(size)
        self.choose()
        self.decode()
        return {**self.understanding.compiled, **self._compiled}

    def kv_bytes(self) -> int:
        return tree_bytes(self._cache)

    def own_kv_bytes(self) -> int:
        """Of the cache without the base's layers, which all programs of an engine share."""
        return self.kv_bytes() - tree_bytes(self._cache.layers)

    def temporary_bytes(self) -> dict[str, int]:
        """Bytes that each program compiled so far allocates while it runs, by XLA's own analysis."""
        for name, program in {**self.understanding.compiled, **self._compiled}.items():
            if name not in self._temporaries:  # the analysis takes 30 ms, and every answer reports memory
                self._temporaries[name] = _temporaries(program)
        return dict(self._temporaries)

    def _program(self, name: str, fn: Any, donated: tuple[int, ...], *args: Any) -> jax.stages.Compiled:
        if name not in self._compiled:
            bound = partial(fn, config=self.config)
            bound.__name__ = name  # pyright: ignore[reportAttributeAccessIssue] - the name that profiles show
            self._compiled[name] = jax.jit(bound, donate_argnums=donated).lower(*args).compile()
        return self._compiled[name]


def _reads_from_start(pack: Pack | Slot, tap: int) -> bool:
    """Whether a pack has a part in the understanding layers, as an imported adapter may."""
    if isinstance(pack, Slot):
        return any(pack.layout.maps[:tap])
    return pack.lora is not None and any(layer is not None for layer in pack.lora.layers[:tap])


def _expert_config(pack: Pack | Slot) -> ModelConfig | None:
    if isinstance(pack, Slot):
        return pack.layout.expert
    return pack.expert.config if pack.expert is not None else None


def _floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _temporaries(program: jax.stages.Compiled) -> int:
    analysis = program.memory_analysis()
    return 0 if analysis is None else int(analysis.temp_size_in_bytes)
