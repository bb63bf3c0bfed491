"""How much arithmetic a training step is, and how much a device can do."""

import math
import time

import jax
import jax.numpy as jnp

from mbjax.core.base import declare
from mbjax.core.base_train import is_matrix
from mbjax.core.config import ModelConfig
from mbjax.core.param import is_param

# dense bfloat16 TFLOP/s of one device, from the makers' data sheets; the first name contained in `device_kind` counts
_PEAKS = {
    "H200": 989.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "TPU v6": 918.0,
    "TPU v5p": 459.0,
    "TPU v5": 197.0,
    "TPU v4": 275.0,
}
_SIDE, _REPEATS = 1024, 5


def matrix_sizes(config: ModelConfig) -> tuple[int, int]:
    """(all parameters, those that a token is multiplied with: every matrix, and of the embedding only the head)."""
    leaves = [leaf for leaf in jax.tree.leaves(declare(config), is_leaf=is_param) if is_param(leaf)]
    looked_up = 0 if config.tied_head else config.vocab_size * config.d_model
    products = sum(math.prod(p.shape) for p in leaves if is_matrix(p)) - looked_up
    return sum(math.prod(p.shape) for p in leaves), products


def flops_per_token(config: ModelConfig, row_length: int) -> float:
    """Of forward and backward pass, nothing made again: 6 N + 12 L H E T (Chowdhery et al. 2022, appendix B)."""
    attention = 12 * config.n_layers * config.n_heads * config.head_dim * row_length
    return 6.0 * matrix_sizes(config)[1] + attention


def peak_flops(tflops: float | None) -> float:
    """FLOP/s of one device: `tflops` if given, else what its maker says, else what a matrix product reaches here."""
    if tflops is not None:
        return tflops * 1e12
    kind = jax.devices()[0].device_kind
    known = next((peak for name, peak in _PEAKS.items() if name in kind), None)
    return known * 1e12 if known is not None else _measured()


def _measured() -> float:
    x = jnp.ones((_SIDE, _SIDE), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - start)
    local = jax.local_device_count()  # devices of one CPU share its cores
    return 2 * _SIDE**3 / min(times) / local
