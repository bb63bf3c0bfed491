"""Products of a few rows with several weights that read the same input: one launch, every weight read once.

What comes before a product (norm, or the gate of the feed-forward) and after it (bias, residual stream) is done on the
way. Weights are plain, [out, in], in bfloat16 or float32, or quantised in groups of 32 with scales, and minima at four
bits (see `kernels.tiles`). Letters: R rows, G groups of 32 inputs, O outputs of one program.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

GROUP = 32
MOST_ROWS = 8  # each keeps its sums in registers
_BLOCK = 4  # outputs of one program
_LARGE = 32_768  # outputs from which on twice as many are as well spread over the card


@dataclasses.dataclass(frozen=True)
class Weight:
    """values [out, in], or quantised int8 [out, in] or uint8 [out, in / 2] with scales [out, in / 32]; mins the same
    or None (then the zero of four bits is 8); bias float32 [out] and residual [R, out] are added, where given."""

    values: jax.Array
    scales: jax.Array | None = None
    mins: jax.Array | None = None
    bias: jax.Array | None = None
    residual: jax.Array | None = None

    @property
    def out(self) -> int:
        return self.values.shape[0]


@dataclasses.dataclass(frozen=True)
class _Form:
    """What of a weight there is, and where its programs begin."""

    first: int
    four: bool
    present: tuple[bool, ...]  # scales, mins, bias, residual


def fits(weight: Weight, width: int) -> bool:
    """Whether the kernel takes this weight of `width` inputs."""
    plain = weight.scales is None and weight.values.shape[1] == width
    quantised = weight.scales is not None and weight.scales.shape[1] * GROUP == width
    return width % GROUP == 0 and weight.out % (2 * _BLOCK) == 0 and (plain or quantised)


def linears(
    x: jax.Array | tuple[jax.Array, jax.Array],
    weights: Sequence[Weight],
    *,
    norm: jax.Array | None = None,
    eps: float = 0.0,
) -> list[jax.Array]:
    """x [R, in] through each weight, in x's dtype; sums are float32, and R is at most MOST_ROWS.

    norm float32 [in]: of rms_norm(x) instead. A pair (gate, up) stands for silu(gate) * up.
    """
    parts = x if isinstance(x, tuple) else (x,)
    n_rows, width = parts[0].shape
    groups = width // GROUP
    block, warps = _blocking(n_rows, groups, weights)
    inputs = [part.reshape(n_rows, groups, GROUP) for part in parts]
    inputs += [] if norm is None else [norm.reshape(groups, GROUP)]
    forms, first = [], 0
    for weight in weights:
        four = weight.values.dtype == jnp.uint8
        own = (weight.scales, weight.mins, weight.bias, weight.residual)
        forms.append(_Form(first, four, tuple(part is not None for part in own)))
        first += weight.out // block
        inputs.append(weight.values.reshape(weight.out, groups, GROUP // 2 if four else GROUP))
        inputs += [part for part in own if part is not None]
    call = pl.pallas_call(
        partial(_kernel, forms=tuple(forms), paired=len(parts) == 2, norm=norm is not None, eps=eps, block=block),
        grid=(first,),
        out_shape=[jax.ShapeDtypeStruct((n_rows, weight.out), parts[0].dtype) for weight in weights],
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
        name="linears",
    )
    return list(call(*inputs))


def _blocking(n_rows: int, groups: int, weights: Sequence[Weight]) -> tuple[int, int]:
    """Outputs and warps of one program: a thread reads 16 bytes of weights at a time, or 8 weights where there are
    several rows, whose sums it keeps."""
    block = _BLOCK if sum(weight.out for weight in weights) < _LARGE else 2 * _BLOCK
    n_values = block * _step(groups) * GROUP
    n_bytes = n_values * weights[0].values.dtype.itemsize // (2 if weights[0].values.dtype == jnp.uint8 else 1)
    threads = n_bytes // 16 if n_rows == 1 else n_values // 8
    return block, max(1, min(8, threads // 32))


def _step(groups: int) -> int:
    """Groups that are read at a time: the largest power of two that parts them evenly."""
    return min(GROUP, groups & -groups)


def _kernel(*refs: Any, forms: tuple[_Form, ...], paired: bool, norm: bool, eps: float, block: int) -> None:
    refs, outs = refs[: -len(forms)], refs[-len(forms) :]
    n_x = 1 + paired
    x_refs, norm_ref, at = refs[:n_x], refs[n_x] if norm else None, n_x + norm
    program = pl.program_id(0)
    for form, out in zip(forms, outs, strict=True):
        own = refs[at : at + 1 + sum(form.present)]
        at += len(own)
        end = form.first + out.shape[1] // block

        @pl.when((program >= form.first) & (program < end))
        def _(form: _Form = form, own: Any = own, out: Any = out) -> None:
            _product(x_refs, norm_ref, own, out, program - form.first, form, eps, block)


def _product(
    x_refs: Any, norm_ref: Any, own: Any, out: Any, index: jax.Array, form: _Form, eps: float, block: int
) -> None:
    """The outputs [index * block, (index + 1) * block) of one weight."""
    rest = iter(own[1:])
    scales, mins, bias, residual = (next(rest) if there else None for there in form.present)
    rows = pl.ds(index * block, block)
    n_rows, groups, _ = x_refs[0].shape
    step, n_pieces = _step(groups), 1 + form.four
    zero = jnp.zeros((block, step, GROUP // n_pieces), jnp.float32)

    def accumulate(i: Any, state: Any) -> Any:
        sums, squares = state
        part = pl.ds(i * step, step)
        scale = None if scales is None else scales[rows, part].astype(jnp.float32)
        shift = None
        if form.four:
            assert scale is not None
            shift = -8.0 * scale if mins is None else mins[rows, part].astype(jnp.float32)
        w = _values(own[0][rows, part, :], scale, shift)
        norms = [None] * n_pieces if norm_ref is None else [norm_ref[part, own] for own in _columns(form.four)]
        for row in range(n_rows):
            for piece, norm, wide in zip(_input(x_refs, row, part, form.four), norms, w, strict=True):
                if norm is not None:
                    squares = _with(squares, row, squares[row] + jnp.sum(piece * piece))
                    piece = piece * norm
                sums = _with(sums, row, sums[row] + wide * piece[None])
        return sums, squares

    state = ((zero,) * n_rows, (jnp.float32(0),) * n_rows)
    if n_rows == 1:  # all reads in flight at once
        for i in range(groups // step):
            state = accumulate(i, state)
    else:
        state = jax.lax.fori_loop(0, groups // step, accumulate, state)
    for row, (sums, squares) in enumerate(zip(*state, strict=True)):
        y = jnp.sum(jnp.sum(sums, axis=2), axis=1)
        if norm_ref is not None:
            y = y * jax.lax.rsqrt(squares / (groups * GROUP) + eps)
        if bias is not None:
            y = y + bias[rows]
        if residual is not None:
            y = y + residual[row, rows].astype(jnp.float32)
        out[row, rows] = y.astype(out.dtype)


def _with(values: tuple[Any, ...], i: int, value: Any) -> tuple[Any, ...]:
    return (*values[:i], value, *values[i + 1 :])


def _columns(four: bool) -> list[Any]:
    """The inputs of a group; for four bits in two halves, as bytes hold them."""
    return [pl.ds(0, GROUP // 2), pl.ds(GROUP // 2, GROUP // 2)] if four else [pl.ds(0, GROUP)]


def _input(x_refs: Any, row: int, part: Any, four: bool) -> list[jax.Array]:
    """One row's inputs, float32 [step, 32], or in two halves."""
    pieces = [x_refs[0][row, part, own].astype(jnp.float32) for own in _columns(four)]
    if len(x_refs) == 1:
        return pieces
    ups = [x_refs[1][row, part, own].astype(jnp.float32) for own in _columns(four)]
    return [gate * jax.nn.sigmoid(gate) * up for gate, up in zip(pieces, ups, strict=True)]


def _values(stored: jax.Array, scale: jax.Array | None, shift: jax.Array | None) -> list[jax.Array]:
    """Weights, float32 [O, step, 32]; of four bits the low halves, inputs [0, 16) of each group, and the high ones."""
    if shift is None:
        wide = stored.astype(jnp.float32)
        return [wide if scale is None else wide * scale[:, :, None]]
    assert scale is not None
    bits = stored.astype(jnp.int32)
    return [half.astype(jnp.float32) * scale[:, :, None] + shift[:, :, None] for half in (bits & 15, bits >> 4)]
