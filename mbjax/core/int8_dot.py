"""Products of int8 with int8 into int32, scaled afterwards, as AQT does them (github.com/google/aqt).

Letters: R rows, O outputs, K inputs, G groups along K, of N inputs each.
"""

import math

import jax
import jax.numpy as jnp

from mbjax.kernels import twins


def int8_linear(x: jax.Array, values: jax.Array, scales: jax.Array, activations: int) -> jax.Array:
    """x [R, in] times a plain 8-bit weight (values int8 [O, K], scales [O, groups]): float32 [R, O].

    x is rounded to int8 with one scale for each `activations` inputs of a row, 0 for the whole row; inputs beyond x's
    own count as zeros.
    """
    width, groups = values.shape[1], scales.shape[1]
    unit = activations or width
    whole = -(-width // unit) * unit
    if groups > 1:  # so that groups of weights and of activations both part the inputs evenly
        scales = jnp.pad(scales, ((0, 0), (0, whole * groups // width - groups)))
    values = jnp.pad(values, ((0, 0), (0, whole - width)))
    padded = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, whole - x.shape[1])))
    q, x_scales = twins.quantize_activations(padded, unit)
    operands = (q, x_scales, values, scales.astype(jnp.float32))
    return jax.lax.platform_dependent(*operands, cpu=float_dot, default=int8_dot)


def round_activations(x: jax.Array, group: int) -> jax.Array:
    """x [R, in] as `int8_linear` sees it."""
    width = x.shape[1]
    unit = group or width
    q, scales = twins.quantize_activations(jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -width % unit))), unit)
    return _dequantised(q, scales)[:, :width].astype(x.dtype)


def int8_dot(x: jax.Array, x_scales: jax.Array, w: jax.Array, w_scales: jax.Array) -> jax.Array:
    """int8 x [R, K] and w [O, K], each with float32 scales [., groups] that part K evenly, to float32 [R, O].

    Each group is summed in int32, so that nothing is rounded before the scales come in.
    """
    width = x.shape[1]
    n_groups = math.lcm(x_scales.shape[1], w_scales.shape[1])
    x_scales, w_scales = (jnp.repeat(s, n_groups // s.shape[1], axis=1) for s in (x_scales, w_scales))

    def add(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        x_part, w_part, x_scale, w_scale = part
        dims = (((1,), (1,)), ((), ()))
        sums = jax.lax.dot_general(x_part, w_part, dims, preferred_element_type=jnp.int32)
        return total + sums.astype(jnp.float32) * x_scale[:, None] * w_scale[None, :], None

    def split(q: jax.Array) -> jax.Array:
        return q.reshape(q.shape[0], n_groups, width // n_groups).swapaxes(0, 1)

    start = jnp.zeros((x.shape[0], w.shape[0]), jnp.float32)
    return jax.lax.scan(add, start, (split(x), split(w), x_scales.T, w_scales.T))[0]


def float_dot(x: jax.Array, x_scales: jax.Array, w: jax.Array, w_scales: jax.Array) -> jax.Array:
    """The same in float32: on the CPU, where XLA's integer products are scalar loops."""
    wide = (_dequantised(x, x_scales), _dequantised(w, w_scales))
    return jnp.einsum("rk,ok->ro", *wide, precision=jax.lax.Precision.HIGHEST)


def _dequantised(q: jax.Array, scales: jax.Array) -> jax.Array:
    groups = q.astype(jnp.float32).reshape(*scales.shape, q.shape[1] // scales.shape[1])
    return (groups * scales[..., None]).reshape(q.shape)
