"""The pure part of training a pack: rows of packed examples, the loss from the tap on, and one optimiser step.

A row holds one shared prefix (what every example begins with: the template's opening) and, after it, as many examples
as fit. Every example sees the prefix and itself. Only the pack is differentiated; the understanding layers are not
even run: their states at the tap come with the row. An example with choices has a segment for each of them, all in one
row; its loss is that of the right one and, beside it, how hard that is to tell from the others.

Axis letters: N rows of a batch, T tokens of a row, M scored positions of a row, C choices of a row, D model width,
V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mbjax.core.base import Base, head
from mbjax.core.config import ModelConfig
from mbjax.core.forward import fuse, understand
from mbjax.core.lora import LowRank
from mbjax.core.ops import Rows
from mbjax.core.pack import Pack
from mbjax.core.quant import Scheme
from mbjax.core.quantize import fake_quantize

ROWS_AT_ONCE = 1  # more rows together are no faster on the CPU, and each adds some 400 MB for a 135M base


@flax.struct.dataclass
class Choices:
    """Which scored positions make up the choices of rows, and which choices belong to one question."""

    of: jax.Array  # int32 [N, M], the row's choice whose likelihood the position is part of, -1 where of none
    question: jax.Array  # int32 [N, C], the row's question that the choice answers, -1 where there is none
    right: jax.Array  # bool [N, C], one of each question


@flax.struct.dataclass
class Batch:
    """Packed rows. `at` and `target` list the scored positions: the token at `at` is to predict `target`."""

    tokens: jax.Array  # int32 [N, T]
    rows: Rows  # positions and segments, int32 [N, T] each
    at: jax.Array  # int32 [N, M]
    target: jax.Array  # int32 [N, M], -1 where there is none
    tap: jax.Array | None = None  # [N, T, D], the states at the tap, as cached (rounded)
    choices: Choices | None = None


@flax.struct.dataclass
class TrainState:
    pack: Pack
    optimiser: Any
    step: jax.Array  # int32 []
    average: Pack | None = None  # the running mean of `pack` over the steps, where one is kept

    @property
    def kept(self) -> Pack:
        """The pack that is validated and shipped."""
        return self.pack if self.average is None else self.average


# `pack_loss` with its settings: of a pack, a base, a batch and its gates
Loss = Callable[[Pack, Base, Batch, jax.Array], tuple[jax.Array, jax.Array]]


def tap_states(base: Base, tokens: jax.Array, rows: Rows, *, config: ModelConfig) -> jax.Array:
    """The frozen states that packs are trained on, bfloat16 [N, T, D]: cached and rounded, in the first epoch too."""
    gates = jnp.zeros((*tokens.shape, 0), jnp.float32)
    return understand(base, (), gates, tokens, None, config=config, rows=rows)[0].astype(jnp.bfloat16)


def pack_loss(
    pack: Pack, base: Base, batch: Batch, gate: jax.Array, *, config: ModelConfig, choice_weight: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy in nats over the scored positions, and their number. gate float32 [N], one per row.

    Positions of wrong choices are not among them; `choice_weight` times `choice_loss` is added to the sum.
    """
    assert batch.tap is not None
    gates = jnp.broadcast_to(gate[:, None, None], (*batch.tokens.shape, 1))
    h, _ = fuse(base, (pack,), gates, batch.tap.astype(base.embed.dtype), None, config=config, rows=batch.rows)
    scored = jnp.take_along_axis(h, batch.at[..., None], axis=1)
    logits = head(base, scored, config=config)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch.target, 0))
    counts = batch.target >= 0
    if batch.choices is None:
        return jnp.where(counts, losses, 0.0).sum(), counts.sum()
    ranking = choice_loss(jnp.where(counts, losses, 0.0), batch.choices)
    counts &= (batch.choices.of < 0) | jnp.take_along_axis(batch.choices.right, batch.choices.of, axis=1)
    return jnp.where(counts, losses, 0.0).sum() + choice_weight * ranking, counts.sum()


def choice_loss(losses: jax.Array, choices: Choices) -> jax.Array:
    """Summed cross-entropy in nats of the questions' right choices, each choice as likely as all its tokens together.

    losses float32 [N, M], of every scored position.
    """
    n_choices = choices.question.shape[1]
    own = choices.of[..., None] == jnp.arange(n_choices)[None, None]  # [N, M, C]
    likelihood = -jnp.where(own, losses[..., None], 0.0).sum(axis=1)
    rivals = choices.question[:, :, None] == choices.question[:, None, :]
    every = jax.nn.logsumexp(jnp.where(rivals, likelihood[:, None, :], -jnp.inf), axis=2)
    return jnp.where(choices.right, every - likelihood, 0.0).sum()


def as_stored(pack: Pack, scheme: Scheme | None) -> Pack:
    """The pack as a file quantised by `scheme` will give it back, with gradients as if nothing were rounded.

    None: as it is. Like the file, it takes the groups of a low-rank b [out, R] along `out`.
    """
    if scheme is None:
        return pack

    def one(part: Any) -> Any:
        if isinstance(part, LowRank):
            return part.replace(a=fake_quantize(part.a, scheme), b=fake_quantize(part.b.T, scheme).T)  # pyright: ignore[reportAttributeAccessIssue]
        return fake_quantize(part, scheme) if part.ndim == 2 else part

    return jax.tree.map(one, pack, is_leaf=lambda part: isinstance(part, LowRank))


def train_step(
    state: TrainState,
    base: Base,
    batch: Batch,
    seed: jax.Array,
    *,
    config: ModelConfig,
    optimiser: optax.GradientTransformation,
    gate_range: tuple[float, float],
    rows_at_once: int = ROWS_AT_ONCE,
    scheme: Scheme | None = None,
    choice_weight: float = 0.0,
    average: float = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One step; metrics are `loss` (nats per scored token, with what choices add to it) and `grad_norm`.

    Gates are drawn anew for every row, so that the pack bears being mixed; the draw depends on seed and step alone.
    `scheme`: the loss is that of the pack so quantised, and its gradients pass the rounding straight through.
    `average` is the decay of the state's running mean.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    gate = jax.random.uniform(key, batch.tokens.shape[:1], jnp.float32, *gate_range)
    seen = as_stored(state.pack, scheme)  # the gradient at the rounded pack is the one that is passed straight through
    loss = partial(pack_loss, config=config, choice_weight=choice_weight)
    total, n, grads = summed_gradients(loss, seen, base, batch, gate, rows_at_once)
    n = jnp.maximum(n, 1).astype(jnp.float32)
    grads = jax.tree.map(lambda g: g / n, grads)
    pack, optimiser_state = apply_gradients(optimiser, grads, state.optimiser, state.pack)
    metrics = {"loss": total / n, "grad_norm": optax.tree.norm(grads)}
    mean = None if state.average is None else running_mean(state.average, pack, state.step, average)
    return TrainState(pack, optimiser_state, state.step + 1, mean), metrics


def running_mean(mean: Pack, pack: Pack, step: jax.Array, decay: float) -> Pack:
    """The mean moved on by one pack. The first steps weigh less than `decay` says, or the start would stay for long."""
    done = step.astype(jnp.float32)
    keep = jnp.minimum(decay, (1 + done) / (10 + done))
    return jax.tree.map(lambda m, p: m + (1 - keep) * (p - m), mean, pack)


def apply_gradients(
    optimiser: optax.GradientTransformation, grads: Any, optimiser_state: Any, params: Any
) -> tuple[Any, Any]:
    """The parameters and the optimiser's state after one update."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # optax relies on both
        updates, optimiser_state = optimiser.update(grads, optimiser_state, params)
        return optax.apply_updates(params, updates), optimiser_state


def summed_gradients(
    loss: Loss, pack: Pack, base: Base, batch: Batch, gate: jax.Array, rows_at_once: int
) -> tuple[jax.Array, jax.Array, Pack]:
    """What `loss` gives, in nats and tokens, and its gradient, summed over the rows, so many at a time.

    What one layer keeps for the backward pass then fits the processor's cache, and memory does not grow with the batch.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)

    def add(sums: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        (total, n), grads = gradient(pack, base, *part)
        return jax.tree.map(jnp.add, sums, (total, n, grads)), None

    zero = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, pack))
    return jax.lax.scan(add, zero, _groups(batch, gate, rows_at_once))[0]


def summed_loss(
    loss: Loss, pack: Pack, base: Base, batch: Batch, gate: jax.Array, rows_at_once: int
) -> tuple[jax.Array, jax.Array]:
    """What `loss` gives, summed over the rows, so many at a time: the logits of all rows are large."""

    def add(sums: tuple[jax.Array, jax.Array], part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, loss(pack, base, *part)), None

    zero = (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))
    return jax.lax.scan(add, zero, _groups(batch, gate, rows_at_once))[0]


def _groups(batch: Batch, gate: jax.Array, rows_at_once: int) -> tuple[Batch, jax.Array]:
    """Both with a leading axis over groups of equal size, at most `rows_at_once` rows each."""
    n_rows = batch.tokens.shape[0]
    group = max(d for d in range(1, min(rows_at_once, n_rows) + 1) if n_rows % d == 0)
    return jax.tree.map(lambda x: x.reshape(n_rows // group, group, *x.shape[1:]), (batch, gate))
