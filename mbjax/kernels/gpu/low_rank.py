"""What low-rank deltas add to the results of several maps, in one launch. Letters: R rows, P packs, K rank."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mbjax.kernels.part import ALIGN, Part

_BLOCK = 64  # outputs of one program; a smaller power of two where they are not a multiple of it


@dataclasses.dataclass(frozen=True)
class Delta:
    """scale * b @ low of pack `pack`: low [R, K], what its a made of the input; b [out, K]; scale float32 []; these two
    may be parts of a slot."""

    pack: int
    low: jax.Array
    b: jax.Array | Part
    scale: jax.Array | Part


def add_deltas(ys: Sequence[jax.Array], deltas: Sequence[Sequence[Delta]], gates: jax.Array) -> list[jax.Array]:
    """Each y [R, out] with its own deltas, weighed by gates float32 [R, P]. A delta is selected by its gate: behind a
    gate of zero even a NaN changes nothing."""
    inputs, firsts, packs, n_programs = [gates], [], [], 0
    blocks = [min(_BLOCK, y.shape[1] & -y.shape[1]) for y in ys]
    for y, own, block in zip(ys, deltas, blocks, strict=True):
        firsts.append(n_programs)
        packs.append(tuple(delta.pack for delta in own))
        n_programs += y.shape[1] // block
        inputs.append(y)
        for delta in own:
            inputs += [delta.low, *_stored(delta.b), *_stored(delta.scale)]
    call = pl.pallas_call(
        partial(_kernel, firsts=tuple(firsts), packs=tuple(packs), blocks=tuple(blocks)),
        grid=(n_programs,),
        out_shape=[jax.ShapeDtypeStruct(y.shape, y.dtype) for y in ys],
        compiler_params=plgpu.CompilerParams(num_warps=2, num_stages=1),
        name="add_deltas",
    )
    return list(call(*inputs))


def _stored(x: jax.Array | Part) -> list[jax.Array]:
    """In one dimension, and where it begins, as `Part.line`."""
    if isinstance(x, Part):
        return [x.values, x.line()]
    return [x.reshape(-1), jnp.zeros((1,), jnp.int32)]


def _kernel(*refs: Any, firsts: tuple[int, ...], packs: tuple[tuple[int, ...], ...], blocks: tuple[int, ...]) -> None:
    gates, refs, outs = refs[0], refs[1 : -len(firsts)], refs[-len(firsts) :]
    program, at = pl.program_id(0), 0
    for first, own, block, out in zip(firsts, packs, blocks, outs, strict=True):
        parts = refs[at : at + 1 + 5 * len(own)]
        at += len(parts)

        @pl.when((program >= first) & (program < first + out.shape[1] // block))
        def _(first: int = first, own: Any = own, block: int = block, out: Any = out, parts: Any = parts) -> None:
            _add(gates, parts, own, out, pl.ds((program - first) * block, block))


def _add(gates: Any, parts: Any, packs: tuple[int, ...], out: Any, columns: Any) -> None:
    for row in range(out.shape[0]):
        y = parts[0][row, columns].astype(jnp.float32)
        for i, pack in enumerate(packs):
            low, b, b_line, scale, scale_line = parts[1 + 5 * i : 6 + 5 * i]
            rank = low.shape[1]
            out_row = columns.start + jax.lax.iota(jnp.int32, columns.size)
            at = b_line[0] * ALIGN + out_row[:, None] * rank + jax.lax.iota(jnp.int32, rank)[None, :]
            term = jnp.sum(b[at].astype(jnp.float32) * low[row, :].astype(jnp.float32)[None, :], axis=1)
            gate = gates[row, pack]
            y = y + jnp.where(gate > 0, gate * scale[scale_line[0] * ALIGN] * term, 0.0)
        out[row, columns] = y.astype(out.dtype)
