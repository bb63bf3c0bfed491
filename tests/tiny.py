"""Tiny models that the tests share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.base import Base, declare
from mbjax.core.cache import Cache
from mbjax.core.config import ModelConfig, RopeScaling
from mbjax.core.forward import forward
from mbjax.core.pack import Mix
from mbjax.core.param import abstract_params

PLAIN = ModelConfig(
    n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=128, vocab_size=97, max_context=1024
)
ODD = ModelConfig(  # nothing a multiple of what it is elsewhere, every optional part present
    n_layers=2,
    d_model=40,
    n_heads=6,
    n_kv_heads=2,
    head_dim=12,
    d_ff=88,
    vocab_size=101,
    max_context=1024,
    tied_head=False,
    qkv_bias=True,
    qk_norm=True,
    rope_scaling=RopeScaling("llama3", factor=8.0, original_max_position=64),
)
EQUAL = dataclasses.replace(PLAIN, n_kv_heads=4)  # as many key/value heads as query heads
CONFIGS = {"plain": PLAIN, "odd": ODD, "equal": EQUAL}


def random_base(config: ModelConfig, dtype: str = "float32", seed: int = 0) -> Base:
    """Random weights, made by numpy, which compiles nothing; the same values whatever the dtype."""
    rng = np.random.default_rng(seed)

    def draw(shape: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.standard_normal(shape.shape, np.float32)
        values = 0.5 + 0.2 * noise if len(shape.shape) == 1 else noise / np.sqrt(shape.shape[-1])
        return jnp.asarray(values.astype(shape.dtype))

    return jax.tree.map(draw, abstract_params(declare(config), dtype))


def random_tokens(config: ModelConfig, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape, dtype=np.int32)


def logits_of(params: Base, tokens: np.ndarray, config: ModelConfig, cache: Cache | None = None):
    """`forward` without packs: float32 logits [B, T, V] as numpy, and the cache."""
    gates = jnp.zeros((*tokens.shape, 0), jnp.float32)
    logits, cache = forward(params, (), gates, jnp.asarray(tokens), config=config, cache=cache)
    return np.asarray(logits), cache


def no_packs(batch: int) -> Mix:
    """What a step takes where no pack is in use."""
    return Mix((), jnp.zeros((batch, 0), jnp.float32))


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a share of the largest expected value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())
