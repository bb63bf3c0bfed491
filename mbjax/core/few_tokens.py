"""A layer over few tokens on a graphics card, where launches cost as much as bytes: five of them for one token, and
four more for low-rank parts. Of several rows only small products are done here, the others are XLA's. `base` has the
same layer operation by operation.

Tried, and no faster on an H100: a layer in one launch whose programs wait for one another (29 us; five launches, 26),
as a meeting of all programs takes as long as a launch; launches that let the next one begin early (820 us a step; 770).

Axis letters: B batch, T tokens, R rows (B * T), D model width, H query heads, K key/value heads, E head width, P packs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from mbjax.core.cache import LayerKV
from mbjax.core.config import ModelConfig
from mbjax.core.ops import Turn, linear, place_and_attend, rms_norm
from mbjax.core.quant import QTensor
from mbjax.kernels import gpu
from mbjax.kernels.part import Part

if TYPE_CHECKING:
    from mbjax.core.base import Layer
    from mbjax.core.lora import LayerLora

MOST_ROWS = 512  # beyond, no product is small
MOST_ADAPTED = 16  # of them where packs have a part: deltas are added row by row


def takes(params: "Layer", h: jax.Array, kv: LayerKV | None, deltas: "Sequence[LayerLora | None]") -> bool:
    """Whether `run` can take this layer, h [B, T, D], cache and deltas."""
    downs = _downs(deltas)
    most = MOST_ADAPTED if downs else MOST_ROWS
    if kv is None or h.shape[0] * h.shape[1] > most or not gpu.attends(kv.k.shape):
        return False
    if _weight(params.mlp.gate).values.dtype != _weight(params.mlp.up).values.dtype:  # one loop reads both
        return False
    return all(fits(w) for w in jax.tree.leaves(params, is_leaf=_is_weight) if _is_weight(w)) and all(
        x.shape[0] & (x.shape[0] - 1) == 0 and x.shape[0] >= 16 for x in downs
    )


def no_arrivals(n_rows: int, kv: LayerKV) -> jax.Array | None:
    """What the first of several layers gets, see `run`; None where there is no such card."""
    return jnp.zeros((n_rows * kv.k.shape[1],), jnp.int32) if gpu.available() else None


def fits(weight: Any) -> bool:
    """Whether the products here take a weight [out, in], plain or quantised."""
    from mbjax.kernels.gpu import linear

    return not (isinstance(weight, QTensor) and weight.tiled) and linear.fits(_weight(weight), weight.shape[1])


def product(x: jax.Array, weight: Any, norm: jax.Array, eps: float) -> jax.Array:
    """rms_norm(x) W^T of x [1, in]."""
    from mbjax.kernels.gpu.linear import linears

    return linears(x, [_weight(weight)], norm=norm, eps=eps)[0]


def run(
    params: "Layer",
    h: jax.Array,
    positions: jax.Array,
    kv: LayerKV,
    deltas: "tuple[LayerLora | None, ...]",
    gates: jax.Array,
    segments: None,
    seats: jax.Array | None,
    arrivals: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, LayerKV, jax.Array]:
    """As `base.block`, for a layer with its cache; there are no segments then. `arrivals` int32 [B * K] is what the
    layers hand on, zeros, see `kernels.gpu.one_token`."""
    a, m, shape = params.attn, params.mlp, h.shape[:2]
    own = gates.reshape(shape[0] * shape[1], gates.shape[-1])

    def adapted(x: Any, names: Sequence[str], weights: Sequence[Any], **more: Any) -> list[jax.Array]:
        return _adapted(x, names, weights, deltas, own, eps=config.rms_eps, **more)

    rows = h.reshape(-1, h.shape[-1])
    biases = (a.q_bias, a.k_bias, a.v_bias)
    q, k, v = (
        y.reshape(*shape, -1, config.head_dim)
        for y in adapted(rows, ("q", "k", "v"), (a.q, a.k, a.v), biases=biases, norm=a.norm)
    )
    mixed, kv, arrivals = _attention(q, k, v, positions, kv, seats, arrivals, a.turn(config))
    rows = adapted(mixed.reshape(rows.shape[0], -1), ("o",), (a.o,), residual=rows)[0]
    inner = adapted(rows, ("gate", "up"), (m.gate, m.up), norm=m.norm, gated=True)[0]
    rows = adapted(inner, ("down",), (m.down,), residual=rows)[0]
    return rows.reshape(h.shape), kv, arrivals


def _attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    kv: LayerKV,
    seats: jax.Array | None,
    arrivals: jax.Array,
    turn: Turn,
) -> tuple[jax.Array, LayerKV, jax.Array]:
    """As `ops.place_and_attend`; of one token a row in one launch."""
    from mbjax.kernels.gpu.one_token import QUERIES, attend_one

    if q.shape[1] > 1 or q.shape[2] // k.shape[2] > QUERIES:
        return *place_and_attend(q, k, v, positions, kv, seats, turn), arrivals
    seats = jnp.arange(q.shape[0], dtype=jnp.int32) if seats is None else seats
    inv_freq = jnp.asarray(turn.inv_freq, jnp.float32)
    mixed, arrivals, caches = attend_one(
        q, k, v, positions[:, 0], seats, arrivals, inv_freq, kv.arrays(), turn.norms, eps=turn.eps
    )
    return mixed, LayerKV(*caches), arrivals


def _adapted(
    x: jax.Array,
    names: Sequence[str],
    weights: Sequence[Any],
    deltas: "Sequence[LayerLora | None]",
    gates: jax.Array,
    *,
    eps: float,
    norm: jax.Array | None = None,
    biases: Sequence[jax.Array | None] | None = None,
    residual: jax.Array | None = None,
    gated: bool = False,
) -> list[jax.Array]:
    """x [R, in] through several maps and what the packs add to each: the deltas' first halves go with the maps. Of
    two that are gated, silu(first) * second."""
    there = [(p, layer) for p, layer in enumerate(deltas) if layer is not None]
    found = [(p, i, getattr(layer, name)) for p, layer in there for i, name in enumerate(names)]
    found = [(p, i, low_rank) for p, i, low_rank in found if low_rank is not None]
    biases = biases or [None] * len(weights)
    downs = [low_rank.a for _, _, low_rank in found]
    products = _products_of_one if gates.shape[0] == 1 else _products
    ys = products(x, weights, downs, norm, eps, biases, residual, gated and not found)
    if not found:
        return ys
    from mbjax.kernels.gpu.low_rank import Delta, add_deltas

    parts: list[list[Delta]] = [[] for _ in weights]
    for (p, i, low_rank), low in zip(found, ys[len(weights) :], strict=True):
        parts[i].append(Delta(p, low, low_rank.b, low_rank.scale))
    return add_deltas(ys[: len(weights)], parts, gates, gated=gated)


def _products_of_one(
    x: jax.Array,
    weights: Sequence[Any],
    downs: Sequence[jax.Array | Part],
    norm: Any,
    eps: float,
    biases: Any,
    residual: Any,
    gated: bool,
) -> list[jax.Array]:
    """One row through the maps, with what comes before and after, and the deltas' first halves: one launch."""
    from mbjax.kernels.gpu.linear import Weight, linears

    maps = [_weight(w, bias, residual) for w, bias in zip(weights, biases, strict=True)]
    return linears(x, [*maps, *(Weight(down) for down in downs)], norm=norm, eps=eps, gated=gated)


def _products(
    x: jax.Array,
    weights: Sequence[Any],
    downs: Sequence[jax.Array | Part],
    norm: Any,
    eps: float,
    biases: Any,
    residual: Any,
    gated: bool,
) -> list[jax.Array]:
    """The same of several rows."""
    from mbjax.kernels.gpu import rows

    x = x if norm is None else rms_norm(x, norm, eps)
    maps = [_weight(w, bias, residual) for w, bias in zip(weights, biases, strict=True)]
    if not gated and not downs and rows.fits(x.shape[0], maps, x.shape[1]):
        return rows.products(x, maps)
    ys = [linear(x, w, bias) for w, bias in zip(weights, biases, strict=True)]
    ys = [jax.nn.silu(ys[0]) * ys[1]] if gated else ys
    arrays = [down.opened() if isinstance(down, Part) else down for down in downs]
    return [*(ys if residual is None else [residual + ys[0]]), *(linear(x, down.astype(x.dtype)) for down in arrays)]


def _weight(weight: Any, bias: jax.Array | None = None, residual: jax.Array | None = None) -> Any:
    from mbjax.kernels.gpu.linear import Weight

    if isinstance(weight, QTensor):
        return Weight(weight.values, weight.scales, weight.mins, bias, residual)
    return Weight(weight, bias=bias, residual=residual)


def _is_weight(x: Any) -> bool:
    return isinstance(x, QTensor) or getattr(x, "ndim", 0) == 2


def _downs(deltas: "Sequence[LayerLora | None]") -> "list[jax.Array | Part]":
    """The first halves of all deltas, [rank, in] each."""
    return [part.a for layer in deltas if layer is not None for part in vars(layer).values() if part is not None]
