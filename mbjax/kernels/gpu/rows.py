"""Small products of many rows with several weights that read the same input: one launch, where XLA makes three of each,
as it splits a product that has fewer tiles than the card has processors and then joins what it split.

Letters: M rows and N outputs of one program, C inputs of a step.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mbjax.kernels.gpu import dot
from mbjax.kernels.gpu.linear import Weight
from mbjax.kernels.part import Part

_ROWS, _LEAST_ROWS = 64, 32  # of one program
_OUTPUTS = 64
_INPUTS = 64
_SMALL = 160  # programs: what a card runs side by side, about
_DEEPEST = 1024  # inputs; a program has them all to itself


def fits(n_rows: int, weights: Sequence[Weight], width: int) -> bool:
    """Whether the kernel takes these weights of `width` inputs, and so many rows."""
    if any(w.scales is not None or isinstance(w.values, Part) or w.out % _OUTPUTS for w in weights):
        return False
    n_programs = n_rows * sum(weight.out for weight in weights) // (_ROWS * _OUTPUTS)
    return n_rows % _LEAST_ROWS == 0 and width % _INPUTS == 0 and width <= _DEEPEST and n_programs <= _SMALL


def products(x: jax.Array, weights: Sequence[Weight]) -> list[jax.Array]:
    """x [R, in] through each weight, plain ones, in x's dtype; sums are float32."""
    n_rows = min(_ROWS, x.shape[0] & -x.shape[0])
    inputs, forms, first = [x], [], 0
    for weight in weights:
        own = weight.bias, weight.residual
        forms.append(_Form(first, *(part is not None for part in own)))
        first += weight.out // _OUTPUTS
        inputs += [weight.values, *(part for part in own if part is not None)]
    call = pl.pallas_call(
        partial(_kernel, forms=tuple(forms), n_rows=n_rows),
        grid=(first, x.shape[0] // n_rows),
        out_shape=[jax.ShapeDtypeStruct((x.shape[0], weight.out), x.dtype) for weight in weights],
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=3),
        name="products",
    )
    return list(call(*inputs))


class _Form(NamedTuple):
    """The first program of a weight, and what is added to its outputs."""

    first: int
    bias: bool
    residual: bool


def _kernel(*refs: Any, forms: tuple[_Form, ...], n_rows: int) -> None:
    x, rest, outs = refs[0], iter(refs[1:]), refs[-len(forms) :]
    program, rows = pl.program_id(0), pl.ds(pl.program_id(1) * n_rows, n_rows)
    for form, out in zip(forms, outs, strict=True):
        weight, *added = (next(rest) if there else None for there in (True, *form[1:]))

        @pl.when((program >= form.first) & (program < form.first + out.shape[1] // _OUTPUTS))
        def _(form: _Form = form, weight: Any = weight, added: Any = added, out: Any = out) -> None:
            columns = pl.ds((program - form.first) * _OUTPUTS, _OUTPUTS)
            bias, residual = added
            y = _product(x, weight, rows, columns)
            y = y if bias is None else y + bias[columns][None, :]
            y = y if residual is None else y + residual[rows, columns].astype(jnp.float32)
            out[rows, columns] = y.astype(out.dtype)


def _product(x: Any, weight: Any, rows: Any, columns: Any) -> jax.Array:
    """float32 [M, N]."""

    def add(i: jax.Array, y: jax.Array) -> jax.Array:
        part = pl.ds(i * _INPUTS, _INPUTS)
        return y + dot(x[rows, part], weight[columns, part].T)

    return jax.lax.fori_loop(0, x.shape[1] // _INPUTS, add, jnp.zeros((rows.size, columns.size), jnp.float32))
