"""Logits on the accelerator against those of the CPU, of the same weights in the same process: for `card.py`."""

import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from card_cells import Cell
from card_child import Notes
from card_model import random_base

from mbjax.core.base import Base
from mbjax.core.cache import Cache, init_cache
from mbjax.core.config import ModelConfig
from mbjax.core.forward import forward
from mbjax.engine.programs import kv_dtype_of

TEXTS = 4
# how a form is computed: dtype of the weights, and JAX's precision of float32 products (None: the device's usual one)
FORMS = {"float32": ("float32", None), "float32, highest precision": ("float32", "highest"),
         "bfloat16": ("bfloat16", None), "int8": ("int8", None)}  # fmt: skip


def measure(cell: Cell, notes: Notes) -> None:
    """`errors` of a form are against the CPU with the same weights, `from_float32` against its float32 logits. By steps:
    as an engine has them, with a cache, where other kernels than those of a full pass take part."""
    tokens, found, whole = None, {}, None
    for form, (dtype, precision) in FORMS.items():
        try:
            base, config, encode = _base(cell, notes.base, dtype)
            if tokens is None:
                tokens = _tokens(cell, config, encode)
                notes.put(real_weights=encode is not None, texts=list(tokens.shape))
            with jax.default_matmul_precision(precision) if precision else jax.default_matmul_precision("default"):
                there = logits(base, config, tokens, jax.devices()[0])
                stepped = logits_by_steps(base, config, tokens, jax.devices()[0])
            here = logits(base, config, tokens, jax.devices("cpu")[0])
            whole = here if whole is None else whole
            found[form] = errors(there, here) | {"from_float32": errors(there, whole)}
            found[f"{form}, by steps"] = errors(stepped, here) | {"from_float32": errors(stepped, whole)}
        except Exception as error:  # noqa: BLE001 - each form is a result of its own
            found[form] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}
        notes.put(errors=found)


def logits(base: Base, config: ModelConfig, tokens: np.ndarray, device: Any) -> np.ndarray:
    """float32 [B, T, V], computed on that device."""
    placed = jax.device_put(base, device)
    gates = jax.device_put(np.zeros((*tokens.shape, 0), np.float32), device)
    run = jax.jit(partial(forward, config=config))
    return np.asarray(run(placed, (), gates, jax.device_put(tokens, device))[0], np.float32)


def logits_by_steps(base: Base, config: ModelConfig, tokens: np.ndarray, device: Any) -> np.ndarray:
    """The same, one text at a time: its first half as a chunk, the rest token by token."""
    half, capacity = tokens.shape[1] // 2, -(-tokens.shape[1] // 64) * 64

    def take(params: Base, cache: Cache, ids: jax.Array) -> tuple[jax.Array, Cache]:
        gates = jnp.zeros((1, ids.shape[0], 0), jnp.float32)
        found, longer = forward(params, (), gates, ids[None], config=config, cache=cache)
        assert longer is not None
        return found[0], longer

    @jax.jit
    def run(params: Base, empty: Cache, ids: jax.Array) -> jax.Array:
        first, cache = take(params, empty, ids[:half])

        def one(cache: Cache, token: jax.Array) -> tuple[Cache, jax.Array]:
            found, longer = take(params, cache, token[None])
            return longer, found[0]

        return jnp.concatenate([first, jax.lax.scan(one, cache, ids[half:])[1]])

    placed, empty = jax.device_put((base, init_cache(config, 1, capacity, kv_dtype_of(base))), device)
    return np.stack([np.asarray(run(placed, empty, jax.device_put(text, device)), np.float32) for text in tokens])


def errors(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Largest and mean difference relative to the largest logit, and how often the likeliest token is the same."""
    top = float(np.abs(wanted).max())
    apart = np.abs(found - wanted)
    same = float((found.argmax(-1) == wanted.argmax(-1)).mean())
    return {"max": float(apart.max()) / top, "mean": float(apart.mean()) / top, "top1": same, "largest": top}


def _base(cell: Cell, name: str | None, dtype: str) -> tuple[Base, ModelConfig, Any]:
    """Real weights where a name or a path is given, else random ones of the shape."""
    if name is None:
        return random_base(cell.config, dtype), cell.config, None
    from mbjax.core.quant import is_quantized, untile
    from mbjax.io.load import load_base

    loaded = load_base(os.path.expanduser(name), dtype)
    params = jax.tree.map(lambda leaf: untile(leaf) if is_quantized(leaf) else leaf, loaded.params,
                          is_leaf=is_quantized)  # fmt: skip
    return params, loaded.config, loaded.tokenizer.encode


def _tokens(cell: Cell, config: ModelConfig, encode: Any) -> np.ndarray:
    """int32 [TEXTS, T]: real texts where there is a tokenizer, else random tokens."""
    length = cell.scale.text
    if encode is None:
        return np.random.default_rng(3).integers(0, config.vocab_size, (TEXTS, length), np.int32)
    from real_texts import real_texts

    long_enough = (ids for ids in map(encode, real_texts().values()) if len(ids) >= length)
    return np.asarray([next(long_enough)[:length] for _ in range(TEXTS)], np.int32)
