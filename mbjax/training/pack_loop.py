"""Training one pack: from configuration and base to the pack with the best validation loss."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.base import Base
from mbjax.core.config import ModelConfig
from mbjax.core.expert import copy_layers, declare_expert, expert_config
from mbjax.core.lora import declare_lora
from mbjax.core.ops import Rows
from mbjax.core.pack import Pack
from mbjax.core.param import init_params
from mbjax.core.train import ROWS_AT_ONCE, Batch, TrainState, as_stored, pack_loss, summed_loss, train_step
from mbjax.errors import FailureError, InputError
from mbjax.io.pack_quant import SCHEMES
from mbjax.training.base_data import MANY_ROWS
from mbjax.training.checkpoints import Checkpoints
from mbjax.training.compiled import compile_lean
from mbjax.training.config import PackConfig, to_json
from mbjax.training.optimiser import make_optimiser
from mbjax.training.rows import PackedRows


@dataclasses.dataclass(frozen=True)
class TrainData:
    """Packed rows and their tap states [R, T, D]."""

    rows: PackedRows
    tap: np.ndarray

    def batch(self, which: np.ndarray) -> Batch:
        """The rows of the given numbers, on the device."""
        rows = self.rows
        whole = Batch(rows.tokens, Rows(rows.positions, rows.segments), rows.at, rows.target, self.tap, rows.choices)  # pyright: ignore[reportArgumentType]
        return jax.tree.map(lambda array: jnp.asarray(np.ascontiguousarray(array[which])), whole)


def only(batch: Batch, rows: np.ndarray) -> Batch:
    """The batch with nothing scored but in those rows, bool [N]."""
    target = jnp.where(jnp.asarray(rows)[:, None], batch.target, -1)
    choices = batch.choices
    if choices is not None:
        choices = choices.replace(right=choices.right & jnp.asarray(rows)[:, None])  # pyright: ignore[reportAttributeAccessIssue]
    return batch.replace(target=target, choices=choices)  # pyright: ignore[reportAttributeAccessIssue]


@dataclasses.dataclass(frozen=True)
class Event:
    """What the loop tells whoever watches: a step's loss and rate, or a validation."""

    step: int
    loss: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    valid_loss: float | None = None


def new_pack(config: PackConfig, base: Base, model: ModelConfig) -> Pack:
    """The untrained pack of a configuration: exactly the identity. Raises InputError where it does not fit the base."""
    lora = expert = None
    key = jax.random.key(config.loop.seed)
    if config.lora is not None:
        layers = config.lora.layers
        if layers is not None and not all(0 <= i < model.n_layers for i in layers):
            raise InputError(f"lora.layers {list(layers)} lie outside the base's {model.n_layers} layers")
        if layers is not None and min(layers) < model.tap:
            raise InputError(f"lora.layers must be fusion layers, {model.tap} or later: training starts from the tap")
        declared = declare_lora(model, config.lora.rank, config.lora.alpha, config.lora.targets, layers)
        lora = init_params(declared, jax.random.fold_in(key, 0))
    if config.expert is not None:
        shape = expert_config(model, config.expert.layers, config.expert.d_model, config.expert.d_ff)
        expert = init_params(declare_expert(model, shape), jax.random.fold_in(key, 1))
        if config.expert.copy_from is not None:
            try:
                expert = copy_layers(expert, base, config.expert.copy_from)
            except ValueError as error:
                raise InputError(f"expert.copy_from: {error}") from None
    return Pack(expert=expert, lora=lora)


def train_pack(
    config: PackConfig,
    base: Base,
    model: ModelConfig,
    data: TrainData,
    valid: TrainData,
    directory: Path,
    watch: Callable[[Event], None] = lambda event: None,
) -> tuple[Pack, list[Event]]:
    """Trains until the steps are done or validation no longer improves; takes up the directory's last checkpoint.

    Returns the pack of the best validation and all events of this call. Resumed or not, the same bits come out.
    Raises FailureError for a loss that is not finite, with the step and the lines of the batch.
    """
    run = _Run(config, base, model, data, valid)
    state, memory = run.start(), {"batches": None, "best": None, "since_best": 0}
    events: list[Event] = []
    with Checkpoints(directory, to_json(config), keep=config.loop.keep) as checkpoints:
        restored = checkpoints.restore((state, state.pack))
        best = jax.tree.map(jnp.copy, state.kept)  # a step donates its state
        if restored is not None:
            (state, best), memory = restored
        batches = run.batches(memory["batches"])
        while int(state.step) < config.loop.steps and memory["since_best"] < config.loop.patience:
            state, event = run.step(state, next(batches))
            step = event.step
            events.append(event)
            watch(event)
            if step % config.loop.validate_every == 0 or step == config.loop.steps:
                loss = run.validate(state.kept)
                better = memory["best"] is None or loss < memory["best"]
                best = jax.tree.map(jnp.copy, state.kept) if better else best
                memory |= {"best": loss if better else memory["best"]}
                memory |= {"since_best": 0 if better else memory["since_best"] + 1}
                events.append(Event(step, valid_loss=loss))
                watch(events[-1])
            if step % config.loop.checkpoint_every == 0 or step == config.loop.steps:
                memory |= {"batches": batches.get_state()}
                checkpoints.save(step, (state, best), dict(memory))
    return best, events


class _Run:
    """The compiled step and the data order of one run."""

    def __init__(self, config: PackConfig, base: Base, model: ModelConfig, data: TrainData, valid: TrainData) -> None:
        self.config, self.base, self.model, self.data, self.valid = config, base, model, data, valid
        self.optimiser = make_optimiser(config.optimiser, config.loop.steps)
        gates = (config.loop.gates[0], config.loop.gates[1])
        at_once = ROWS_AT_ONCE if jax.default_backend() == "cpu" else config.loop.rows
        step = partial(train_step, config=model, optimiser=self.optimiser, gate_range=gates)
        scheme = SCHEMES[config.quantise_aware] if config.quantise_aware else None
        weight = config.loop.choice_weight
        self._step_fn = partial(
            step, rows_at_once=at_once, scheme=scheme, choice_weight=weight, average=config.loop.average
        )
        self._as_stored = jax.jit(partial(as_stored, scheme=scheme))
        self._step: jax.stages.Compiled | None = None
        loss = partial(pack_loss, config=model, choice_weight=weight)
        self._loss_fn = partial(summed_loss, loss, rows_at_once=at_once)
        self._loss: jax.stages.Compiled | None = None

    def start(self) -> TrainState:
        pack = new_pack(self.config, self.base, self.model)
        pack = jax.tree.map(jnp.copy, pack)  # a step donates its state; copies of base layers must not go with it
        average = jax.tree.map(jnp.copy, pack) if self.config.loop.average else None
        return TrainState(pack, self.optimiser.init(pack), jnp.zeros((), jnp.int32), average)  # pyright: ignore[reportArgumentType]

    def batches(self, state: dict[str, Any] | None) -> Any:
        """An endless iterator over row numbers, shuffled anew in every epoch; its state can be kept and set."""
        source = grain.MapDataset.source(np.arange(len(self.data.rows)))  # pyright: ignore[reportArgumentType]
        shuffled = source.seed(self.config.loop.seed).shuffle().repeat(MANY_ROWS // len(source) + 1)
        batches = iter(shuffled.batch(self.config.loop.rows).to_iter_dataset(grain.ReadOptions(num_threads=0)))
        if state is not None:
            batches.set_state(state)
        return batches

    def step(self, state: TrainState, which: np.ndarray) -> tuple[TrainState, Event]:
        start = time.perf_counter()
        seed = jnp.asarray(np.uint32(self.config.loop.seed))
        batch = self.data.batch(which)
        if self._step is None:
            self._step = compile_lean(self._step_fn, state, self.base, batch, seed, donate_argnums=0)
        state, metrics = self._step(state, self.base, batch, seed)
        loss, norm, step = float(metrics["loss"]), float(metrics["grad_norm"]), int(state.step)
        if not math.isfinite(loss) or not math.isfinite(norm):
            lines = sorted(line for row in which for line in self.data.rows.lines[row])
            raise FailureError(
                f"step {step}: the loss is {loss} and the gradient {norm}; the batch held the examples of lines"
                f" {', '.join(map(str, lines[:20]))}{' ...' if len(lines) > 20 else ''}; lower the learning rate"
            )
        used = int((self.data.rows.segments[which] >= 0).sum())
        return state, Event(step, loss, norm, used / (time.perf_counter() - start))

    def validate(self, pack: Pack) -> float:
        """Nats per scored token over all validation rows, with a gate of 1 and what choices add to it."""
        pack, total, n = self._as_stored(pack), 0.0, 0
        gate = jnp.ones(self.config.loop.rows, jnp.float32)
        for which in _strides(len(self.valid.rows), self.config.loop.rows):
            batch = self.valid.batch(which)
            once = np.zeros(len(which), bool)
            once[np.unique(which, return_index=True)[1]] = True  # the last batch repeats a row: count it once
            batch = only(batch, once)
            if self._loss is None:
                self._loss = compile_lean(self._loss_fn, pack, self.base, batch, gate)
            loss, count = self._loss(pack, self.base, batch, gate)
            total, n = total + float(loss), n + int(count)
        return total / max(n, 1)


def _strides(n: int, size: int) -> Iterator[np.ndarray]:
    for start in range(0, n, size):
        yield np.minimum(np.arange(start, start + size), n - 1)
