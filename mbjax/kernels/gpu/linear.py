"""Products of one row with several weights that read the same input: one launch, every weight read once.

What comes before a product (norm) and after it (bias, residual stream, the gate of the feed-forward) is done on the
way. Weights are plain, [out, in], in bfloat16 or float32, or quantised in groups of 32 with scales, and minima at four
bits (see `kernels.tiles`). Letters: G groups of 32 inputs, O outputs of one program, C groups of a chunk.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mbjax.kernels.part import ALIGN, Part

GROUP = 32
_BLOCK = 4  # lines of weights that a program reads side by side
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
    part: bool
    present: tuple[bool, ...]  # scales, mins, bias, residual


def fits(weight: Weight, width: int) -> bool:
    """Whether the kernel takes this weight of `width` inputs."""
    plain = weight.scales is None and weight.values.shape[1] == width
    quantised = weight.scales is not None and weight.scales.shape[1] * GROUP == width
    return width % GROUP == 0 and weight.out % (2 * _BLOCK) == 0 and (plain or quantised)


def linears(
    x: jax.Array, weights: Sequence[Weight], *, norm: jax.Array | None = None, eps: float = 0.0, gated: bool = False
) -> list[jax.Array]:
    """x [1, in] through each weight, in x's dtype; sums are float32.

    norm float32 [in]: of rms_norm(x) instead. gated: of two weights (gate, up) the one result silu(gate) * up.
    """
    groups = x.shape[1] // GROUP
    block, warps = _blocking(groups, weights, gated)
    inputs = [x.reshape(groups, GROUP), *([] if norm is None else [norm.reshape(groups, GROUP)])]
    forms, first = [], 0
    for weight in weights:
        found, is_part = _stored(weight.values, groups)
        own = (weight.scales, weight.mins, weight.bias, weight.residual)
        forms.append(_Form(first, is_part, tuple(part is not None for part in own)))
        first += 0 if gated else weight.out // block
        inputs += [*found, *(part for part in own if part is not None)]
    outs = weights[:1] if gated else weights
    call = pl.pallas_call(
        partial(_kernel, forms=tuple(forms), norm=norm is not None, eps=eps, block=block, gated=gated),
        grid=(first or weights[0].out // block,),
        out_shape=[jax.ShapeDtypeStruct((1, weight.out), x.dtype) for weight in outs],
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=1),
        name="linears",
    )
    return list(call(*inputs))


def _stored(values: jax.Array | Part, groups: int) -> tuple[list[jax.Array], bool]:
    """What the kernel reads: [out, G, 32], of four bits [out, G, 16], or a slot in lines of 32 and the line that a part
    begins at; and whether it is a part."""
    if isinstance(values, Part):
        assert ALIGN == GROUP  # a line holds a group of inputs
        return [values.values.reshape(-1, GROUP), values.line()], True
    return [values.reshape(values.shape[0], groups, -1)], False


def _blocking(groups: int, weights: Sequence[Weight], gated: bool) -> tuple[int, int]:
    """Outputs and warps of one program: a thread has 8 values of a line's chunk, 16 bytes of bfloat16. More would be
    fewer threads, and those of few bits would then wait for their arithmetic."""
    lines = _BLOCK if sum(weight.out for weight in weights) < _LARGE else 2 * _BLOCK
    block = lines // 2 if gated and weights[0].scales is None else lines  # a pair's plain values fill the registers
    return block, max(1, min(8, block * _chunk(groups) * GROUP // (8 * 32)))


def _chunk(groups: int) -> int:
    """Groups that are read at a time: the largest power of two that parts them evenly."""
    return min(GROUP, groups & -groups)


def _kernel(*refs: Any, forms: tuple[_Form, ...], norm: bool, eps: float, block: int, gated: bool) -> None:
    n_outs = 1 if gated else len(forms)
    refs, outs = refs[:-n_outs], refs[-n_outs:]
    norm_ref, at = refs[1] if norm else None, 1 + norm
    stored = []
    for form in forms:
        stored.append(_Stored.of(refs[at:], form))
        at += 1 + form.part + sum(form.present)
    program = pl.program_id(0)
    for form, own, out in zip(forms, [stored] if gated else [[one] for one in stored], outs, strict=False):
        end = form.first + out.shape[1] // block

        @pl.when((program >= form.first) & (program < end))
        def _(form: _Form = form, own: Sequence[_Stored] = own, out: Any = out) -> None:
            rows = pl.ds((program - form.first) * block, block)
            ys = _products(refs[0], norm_ref, own, rows, eps)
            y = ys[0] * jax.nn.sigmoid(ys[0]) * ys[1] if gated else ys[0]
            out[0, rows] = y.astype(out.dtype)


class _Stored(NamedTuple):
    """The refs of a weight; None where there is no such part."""

    values: Any
    line: Any
    scales: Any
    mins: Any
    bias: Any
    residual: Any

    @classmethod
    def of(cls, refs: Any, form: _Form) -> "_Stored":
        rest = iter(refs[1 + form.part :])
        return cls(refs[0], refs[1] if form.part else None, *(next(rest) if there else None for there in form.present))

    @property
    def four(self) -> bool:
        return self.values.dtype == jnp.uint8

    def read(self, rows: Any, part: Any, groups: int) -> tuple[Any, Any, Any]:
        """Values [O, C, 32], or [O, C, 16] of four bits; scales and mins [O, C] or None."""
        if self.line is not None:
            return _of_slot(self.values, self.line[0], rows, part, groups), None, None
        scales, mins = (None if ref is None else ref[rows, part] for ref in (self.scales, self.mins))
        return self.values[rows, part, :], scales, mins

    def after(self, y: jax.Array, rows: Any) -> jax.Array:
        """y with what is added to it."""
        y = y if self.bias is None else y + self.bias[rows]
        return y if self.residual is None else y + self.residual[0, rows].astype(jnp.float32)


def _products(x_ref: Any, norm_ref: Any, stored: Sequence[_Stored], rows: Any, eps: float) -> list[jax.Array]:
    """The outputs `rows` of each weight, float32 [O]. All that some chunks need is read before the first is used; the
    inputs of a group come in two halves at four bits, as bytes hold them."""
    groups, halves = x_ref.shape[0], 1 + stored[0].four
    chunk, width = _chunk(groups), GROUP // halves
    columns = [pl.ds(half * width, width) for half in range(halves)]
    sums = [jnp.zeros((rows.size, chunk, width), jnp.float32) for _ in stored]
    squares = jnp.zeros((chunk, width), jnp.float32)
    for first in range(0, groups, chunk * _IN_FLIGHT):
        read = []
        for start in range(first, min(groups, first + chunk * _IN_FLIGHT), chunk):
            part = pl.ds(start, chunk)
            weights = [own.read(rows, part, groups) for own in stored]
            read.append(
                (weights, *([None if ref is None else ref[part, own] for own in columns] for ref in (x_ref, norm_ref)))
            )
        for weights, xs, norms in read:
            xs = [x.astype(jnp.float32) for x in xs]
            if norm_ref is not None:
                squares = sum((x * x for x in xs), squares)
                xs = [x * norm for x, norm in zip(xs, norms, strict=True)]
            for i, weight in enumerate(weights):
                sums[i] = sum((wide * x[None] for wide, x in zip(_widened(*weight), xs, strict=True)), sums[i])
    ys = [jnp.sum(jnp.sum(own, axis=2), axis=1) for own in sums]
    if norm_ref is not None:
        by = jax.lax.rsqrt(jnp.sum(squares) / (groups * GROUP) + eps)
        ys = [y * by for y in ys]
    return [own.after(y, rows) for y, own in zip(ys, stored, strict=True)]


def _of_slot(slot: Any, line: Any, rows: Any, part: Any, groups: int) -> jax.Array:
    """[O, C, 32] of a part of a slot that begins at its line `line`."""
    row = (rows.start + jax.lax.iota(jnp.int32, rows.size))[:, None, None]
    group = (part.start + jax.lax.iota(jnp.int32, part.size))[None, :, None]
    return slot[line + row * groups + group, jax.lax.iota(jnp.int32, GROUP)[None, None, :]]


def _widened(values: jax.Array, scale: jax.Array | None, low: jax.Array | None) -> list[jax.Array]:
    """float32 [O, C, 32]; of four bits the low halves, inputs [0, 16) of each group, and the high ones."""
    if scale is None:
        return [values.astype(jnp.float32)]
    by = scale.astype(jnp.float32)
    if values.dtype != jnp.uint8:
        return [values.astype(jnp.float32) * by[:, :, None]]
    bits, shift = values.astype(jnp.int32), -8.0 * by if low is None else low.astype(jnp.float32)
    return [half.astype(jnp.float32) * by[:, :, None] + shift[:, :, None] for half in (bits & 15, bits >> 4)]
