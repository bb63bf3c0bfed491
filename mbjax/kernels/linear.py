"""A quantised product: the compiled kernel on the CPU, its twin everywhere else."""

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.kernels import native, twins

ALIGN = 64


def linear(
    x: jax.Array,
    values: jax.Array,
    scales: jax.Array,
    mins: jax.Array | None,
    out: int,
    norm: jax.Array | None = None,
    bias: jax.Array | None = None,
    eps: float = 0.0,
) -> jax.Array:
    """rms_norm(x) W^T + bias for a tiled weight (see `tiles`), activations rounded to int8 in groups of 32.

    x float32 [R, in]; norm float32 [in] or None (then x as it is); bias float32 [out] or None; float32 [R, out].
    A row's result does not depend on R: the same bits alone and among any number of rows.
    """
    none = jnp.zeros((0,), jnp.float32)
    operands = (
        x,
        values,
        scales,
        jnp.zeros((0,), jnp.float16) if mins is None else mins,
        none if norm is None else norm,
        none if bias is None else bias,
    )

    def compiled(*operands: jax.Array) -> jax.Array:
        width = values.size // values.shape[0] // 16 * (2 if values.dtype == jnp.uint8 else 1)
        results = (
            jax.ShapeDtypeStruct((x.shape[0], out), jnp.float32),
            jax.ShapeDtypeStruct((activation_bytes(x.shape[0], width),), jnp.uint8),
        )
        call = jax.ffi.ffi_call("mbjax_linear", results, vmap_method="sequential")
        return call(*operands, eps=np.float32(eps))[0]

    def twin(x: jax.Array, values: jax.Array, scales: jax.Array, *_: jax.Array) -> jax.Array:
        return twins.linear(x, values, scales, mins, out, norm, bias, eps)

    if x.shape[0] == 0:
        return jnp.zeros((0, out), jnp.float32)
    if not native.available():
        return twin(*operands)
    return jax.lax.platform_dependent(*operands, cpu=compiled, default=twin)


def activation_bytes(rows: int, width: int) -> int:
    """Scratch of a product: int8 activations, and scale, sum and weighted sum of each block of 32."""
    return aligned(rows * width) + 3 * aligned(rows * width // 32 * 4)


def aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
