"""Products of one row with several weights that read the same input: one launch, every weight read once.

What comes before a product (norm, or the gate of the feed-forward) and after it (bias, residual stream) is done on the
way. Weights are plain, [out, in], in bfloat16 or float32, or quantised in groups of 32 with scales, and minima at four
bits (see `kernels.tiles`). Letters: G groups of 32 inputs, O outputs of one program, C groups of a chunk.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mbjax.kernels.part import ALIGN, Part

GROUP = 32
_BLOCK = 4  # outputs of one program
_LARGE = 32_768  # outputs from which on twice as many are as well spread over the card
_IN_FLIGHT = 8  # chunks that are read before the first is waited for: what registers hold


@dataclasses.dataclass(frozen=True)
class Weight:
    """values [out, in], or quantised int8 [out, in] or uint8 [out, in / 2] with scales [out, in / 32]; mins the same
    or None (then the zero of four bits is 8); bias float32 [out] and residual [1, out] are added, where given. Plain
    values may be part of a slot."""

    values: jax.Array | Part
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
    part: bool
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
    """x [1, in] through each weight, in x's dtype; sums are float32.

    norm float32 [in]: of rms_norm(x) instead. A pair (gate, up) stands for silu(gate) * up.
    """
    parts = x if isinstance(x, tuple) else (x,)
    groups = parts[0].shape[1] // GROUP
    block, warps = _blocking(groups, weights)
    inputs = [part.reshape(groups, GROUP) for part in parts]
    inputs += [] if norm is None else [norm.reshape(groups, GROUP)]
    forms, first = [], 0
    for weight in weights:
        found, four, is_part = _stored(weight.values, groups)
        own = (weight.scales, weight.mins, weight.bias, weight.residual)
        forms.append(_Form(first, four, is_part, tuple(part is not None for part in own)))
        first += weight.out // block
        inputs += [*found, *(part for part in own if part is not None)]
    call = pl.pallas_call(
        partial(_kernel, forms=tuple(forms), paired=len(parts) == 2, norm=norm is not None, eps=eps, block=block),
        grid=(first,),
        out_shape=[jax.ShapeDtypeStruct((1, weight.out), parts[0].dtype) for weight in weights],
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
        name="linears",
    )
    return list(call(*inputs))


def _stored(values: jax.Array | Part, groups: int) -> tuple[list[jax.Array], bool, bool]:
    """What the kernel reads: [out, G, 32], or a slot in lines of 32 and the line that a part begins at; whether four
    bits each, and whether a part."""
    if isinstance(values, Part):
        assert ALIGN == GROUP  # a line holds a group of inputs
        return [values.values.reshape(-1, GROUP), values.line()], False, True
    four = values.dtype == jnp.uint8
    return [values.reshape(values.shape[0], groups, GROUP // 2 if four else GROUP)], four, False


def _blocking(groups: int, weights: Sequence[Weight]) -> tuple[int, int]:
    """Outputs and warps of one program: a thread reads 16 bytes of a chunk."""
    block = _BLOCK if sum(weight.out for weight in weights) < _LARGE else 2 * _BLOCK
    values = weights[0].values
    n_bytes = block * _chunk(groups) * GROUP * values.dtype.itemsize // (2 if values.dtype == jnp.uint8 else 1)
    return block, max(1, min(8, n_bytes // 512))


def _chunk(groups: int) -> int:
    """Groups that are read at a time: the largest power of two that parts them evenly."""
    return min(GROUP, groups & -groups)


def _kernel(*refs: Any, forms: tuple[_Form, ...], paired: bool, norm: bool, eps: float, block: int) -> None:
    refs, outs = refs[: -len(forms)], refs[-len(forms) :]
    n_x = 1 + paired
    x_refs, norm_ref, at = refs[:n_x], refs[n_x] if norm else None, n_x + norm
    program = pl.program_id(0)
    for form, out in zip(forms, outs, strict=True):
        own = refs[at : at + 1 + form.part + sum(form.present)]
        at += len(own)
        end = form.first + out.shape[1] // block

        @pl.when((program >= form.first) & (program < end))
        def _(form: _Form = form, own: Any = own, out: Any = out) -> None:
            rows = pl.ds((program - form.first) * block, block)
            _product(x_refs, norm_ref, own, out, rows, form, eps)


def _product(x_refs: Any, norm_ref: Any, own: Any, out: Any, rows: Any, form: _Form, eps: float) -> None:
    """The outputs `rows` of one weight."""
    rest = iter(own[1 + form.part :])
    scales, mins, bias, residual = (next(rest) if there else None for there in form.present)
    groups = x_refs[0].shape[0]
    line = own[1][0] if form.part else None
    chunk, n_pieces = _chunk(groups), 1 + form.four
    sums = jnp.zeros((rows.size, chunk, GROUP // n_pieces), jnp.float32)
    squares = jnp.zeros((chunk, GROUP // n_pieces), jnp.float32)
    for first in range(0, groups, chunk * _IN_FLIGHT):
        parts = [pl.ds(start, chunk) for start in range(first, min(groups, first + chunk * _IN_FLIGHT), chunk)]
        read = [_read(own[0], line, scales, mins, (rows, part), x_refs, norm_ref, form.four) for part in parts]
        for values, scale, low, xs, norms in read:
            w = _weights(values, scale, low, form.four)
            for wide, x, norm in zip(w, _inputs(xs), norms, strict=True):
                if norm is not None:
                    squares += x * x
                    x = x * norm
                sums += wide * x[None]
    y = jnp.sum(jnp.sum(sums, axis=2), axis=1)
    if norm_ref is not None:
        y = y * jax.lax.rsqrt(jnp.sum(squares) / (groups * GROUP) + eps)
    if bias is not None:
        y = y + bias[rows]
    if residual is not None:
        y = y + residual[0, rows].astype(jnp.float32)
    out[0, rows] = y.astype(out.dtype)


def _read(
    values: Any, line: Any, scales: Any, mins: Any, place: Any, x_refs: Any, norm_ref: Any, four: bool
) -> tuple[Any, ...]:
    """All that one chunk needs, as it is stored. The inputs of a group come in two halves at four bits, as bytes hold
    them."""
    part, half = place[1], pl.ds(0, GROUP // 2)
    columns = [half, pl.ds(GROUP // 2, GROUP // 2)] if four else [pl.ds(0, GROUP)]
    return (
        values[(*place, slice(None))] if line is None else _of_slot(values, line, place[0], part, x_refs[0].shape[0]),
        None if scales is None else scales[place],
        None if mins is None else mins[place],
        [[ref[part, own] for ref in x_refs] for own in columns],
        [None if norm_ref is None else norm_ref[part, own] for own in columns],
    )


def _of_slot(slot: Any, line: Any, rows: Any, part: Any, groups: int) -> jax.Array:
    """[O, C, 32] of a part of a slot that begins at its line `line`."""
    row = (rows.start + jax.lax.iota(jnp.int32, rows.size))[:, None, None]
    group = (part.start + jax.lax.iota(jnp.int32, part.size))[None, :, None]
    return slot[line + row * groups + group, jax.lax.iota(jnp.int32, GROUP)[None, None, :]]


def _inputs(xs: list[list[jax.Array]]) -> list[jax.Array]:
    """float32 [C, 32], or in two halves."""
    wide = [[x.astype(jnp.float32) for x in own] for own in xs]
    return [own[0] if len(own) == 1 else own[0] * jax.nn.sigmoid(own[0]) * own[1] for own in wide]


def _weights(values: jax.Array, scale: jax.Array | None, low: jax.Array | None, four: bool) -> list[jax.Array]:
    """float32 [O, C, 32]; of four bits the low halves, inputs [0, 16) of each group, and the high ones."""
    if scale is None:
        return [values.astype(jnp.float32)]
    by = scale.astype(jnp.float32)
    if not four:
        return [values.astype(jnp.float32) * by[:, :, None]]
    bits, shift = values.astype(jnp.int32), -8.0 * by if low is None else low.astype(jnp.float32)
    return [half.astype(jnp.float32) * by[:, :, None] + shift[:, :, None] for half in (bits & 15, bits >> 4)]
