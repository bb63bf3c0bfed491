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


def add_deltas(
    ys: Sequence[jax.Array], deltas: Sequence[Sequence[Delta]], gates: jax.Array, *, gated: bool = False
) -> list[jax.Array]:
    """Each y [R, out] with its own deltas, weighed by gates float32 [R, P]. A delta is selected by its gate: behind a
    gate of zero even a NaN changes nothing. gated: of two (gate, up) the one result silu(gate) * up."""
    inputs, firsts, packs, n_programs = [gates], [], [], 0
    blocks = [min(_BLOCK, y.shape[1] & -y.shape[1]) for y in ys]
    for y, own, block in zip(ys, deltas, blocks, strict=True):
        firsts.append(n_programs)
        packs.append(tuple(delta.pack for delta in own))
        n_programs += 0 if gated else y.shape[1] // block
        inputs.append(y)
        for delta in own:
            inputs += [delta.low, *_stored(delta.b), *_stored(delta.scale)]
    call = pl.pallas_call(
        partial(_kernel, firsts=tuple(firsts), packs=tuple(packs), blocks=tuple(blocks), gated=gated),
        grid=(n_programs or ys[0].shape[1] // blocks[0],),
        out_shape=[jax.ShapeDtypeStruct(y.shape, y.dtype) for y in (ys[:1] if gated else ys)],
        compiler_params=plgpu.CompilerParams(num_warps=2, num_stages=1),
        name="add_deltas",
    )
    return list(call(*inputs))


def _stored(x: jax.Array | Part) -> list[jax.Array]:
    """In one dimension, and where it begins, as `Part.line`."""
    if isinstance(x, Part):
        return [x.values, x.line()]
    return [x.reshape(-1), jnp.zeros((1,), jnp.int32)]


def _kernel(
    *refs: Any,
    firsts: tuple[int, ...],
    packs: tuple[tuple[int, ...], ...],
    blocks: tuple[int, ...],
    gated: bool,
) -> None:
    n_outs = 1 if gated else len(firsts)
    gates, refs, outs = refs[0], refs[1:-n_outs], refs[-n_outs:]
    program, parts = pl.program_id(0), []
    for own in packs:
        parts.append(refs[: 1 + 5 * len(own)])
        refs = refs[len(parts[-1]) :]
    if gated:
        columns = pl.ds(program * blocks[0], blocks[0])
        for row in range(outs[0].shape[0]):
            gate, up = (_added(gates, *own, row, columns) for own in zip(parts, packs, strict=True))
            outs[0][row, columns] = (gate * jax.nn.sigmoid(gate) * up).astype(outs[0].dtype)
        return
    for first, own, block, out, part in zip(firsts, packs, blocks, outs, parts, strict=True):

        @pl.when((program >= first) & (program < first + out.shape[1] // block))
        def _(first: int = first, own: Any = own, block: int = block, out: Any = out, part: Any = part) -> None:
            columns = pl.ds((program - first) * block, block)
            for row in range(out.shape[0]):
                out[row, columns] = _added(gates, part, own, row, columns).astype(out.dtype)


def _added(gates: Any, parts: Any, packs: tuple[int, ...], row: int, columns: Any) -> jax.Array:
    """float32 of some columns of a row."""
    y = parts[0][row, columns].astype(jnp.float32)
    for i, pack in enumerate(packs):
        low, b, b_line, scale, scale_line = parts[1 + 5 * i : 6 + 5 * i]
        rank = low.shape[1]
        out_row = columns.start + jax.lax.iota(jnp.int32, columns.size)
        at = b_line[0] * ALIGN + out_row[:, None] * rank + jax.lax.iota(jnp.int32, rank)[None, :]
        term = jnp.sum(b[at].astype(jnp.float32) * low[row, :].astype(jnp.float32)[None, :], axis=1)
        gate = gates[row, pack]
        y = y + jnp.where(gate > 0, gate * scale[scale_line[0] * ALIGN] * term, 0.0)
    return y
