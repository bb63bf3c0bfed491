"""Training a base: from a configuration and batches to parameters, over however many devices and processes."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mbjax.core.base import Base
from mbjax.core.base_train import (
    BaseRows,
    BaseState,
    StepForm,
    base_score,
    base_step,
    declare_stacked,
    gathered,
    new_base,
    shardings,
    state_shardings,
)
from mbjax.errors import FailureError, InputError
from mbjax.training.base_config import BaseConfig
from mbjax.training.checkpoints import Checkpoints
from mbjax.training.flops import flops_per_token, peak_flops
from mbjax.training.mesh import row_share, rows_sharding
from mbjax.training.optimiser import make_base_optimiser
from mbjax.training.processes import exchange_errors

if TYPE_CHECKING:
    from mbjax.training.base_data import BaseBatch

LOGIT_BYTES = {"cpu": 2**24}  # the CPU's is what its cache holds
ACCELERATOR_LOGIT_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class BaseData:
    """Where rows come from. `batches(start)` is endless from that step on; `valid()` gives the held-out rows once.

    Both give this process's share, see `row_share`. token_bytes int32 [V]: how many bytes of text a token stands for.
    """

    batches: Callable[[int], "Iterator[BaseBatch]"]
    valid: Callable[[], "Iterator[BaseBatch]"]
    token_bytes: np.ndarray


@dataclasses.dataclass(frozen=True)
class BaseEvent:
    """What the loop tells whoever watches: means over the steps since the last report, or an evaluation.

    loss is in nats per target, mfu the share of the devices' peak arithmetic, bits_per_byte that of the held-out text.
    """

    step: int
    loss: float | None = None
    grad_norm: float | None = None
    tokens_per_s: float | None = None
    mfu: float | None = None
    bits_per_byte: float | None = None
    valid_loss: float | None = None


@dataclasses.dataclass(frozen=True)
class BaseResult:
    """Where a run stands: parameters (stacked, spread over the devices), steps done, and whether these are all."""

    params: Base
    step: int
    finished: bool
    bits_per_byte: float | None


def train_base(
    config: BaseConfig,
    data: BaseData,
    mesh: jax.sharding.Mesh,
    directory: Path,
    watch: Callable[[BaseEvent], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> BaseResult:
    """Trains until the steps are done or `stop` says so; takes up the directory's last checkpoint, of whatever mesh.

    Resumed on as many devices, the same bits come out as of an uninterrupted run. Raises FailureError for a loss that
    is not finite (before a checkpoint of it is written), for a checkpoint that cannot be written, and where another
    process of the run is gone.
    """
    run = BaseRun(config, mesh, data.token_bytes)
    with Checkpoints(directory, _bound(config), keep=config.loop.keep) as checkpoints:
        restored = checkpoints.restore(run.abstract)
        state, progress = restored if restored is not None else (run.start(), {"step": 0, "bits_per_byte": None})
        first = step = int(progress["step"] or 0)
        bits = progress["bits_per_byte"]
        batches, window, leaving = data.batches(step), _Window(), False
        while step < config.loop.steps and not leaving:
            with exchange_errors(step + 1):
                state, metrics = run.step(state, next(batches))
                step += 1
                window.add(metrics)
                due = _due(config, step, first)
                if due.report:
                    watch(window.close(step, run))
                    leaving = _agreed(stop())
                if due.evaluate:
                    bits, loss = run.evaluate(state.params, data.valid())
                    watch(BaseEvent(step, bits_per_byte=bits, valid_loss=loss))
                    window = _Window()
            if due.checkpoint or leaving:
                checkpoints.save(step, state, {"step": step, "bits_per_byte": bits})
        params = state.params
    return BaseResult(params, step, step >= config.loop.steps, bits)


@dataclasses.dataclass(frozen=True)
class _Due:
    report: bool
    evaluate: bool
    checkpoint: bool


def _due(config: BaseConfig, step: int, first: int) -> _Due:
    """What a step is followed by. A report comes before whatever keeps the state: it finds a loss that is not finite."""
    loop, last = config.loop, step == config.loop.steps
    evaluate, checkpoint = last or step % loop.evaluate_every == 0, last or step % loop.checkpoint_every == 0
    return _Due(evaluate or checkpoint or step % loop.report_every == 0 or step == first + 1, evaluate, checkpoint)


class BaseRun:
    """The compiled programs of one run on one mesh."""

    def __init__(self, config: BaseConfig, mesh: jax.sharding.Mesh, token_bytes: np.ndarray) -> None:
        """Raises InputError where the shape does not fit the mesh."""
        self.config, self.mesh, self.model = config, mesh, config.model
        try:
            placed = shardings(self.model, mesh)
        except ValueError as error:
            raise InputError(f"mesh: {error}; change the table [mesh]") from None
        row_share(mesh, config.loop.rows)
        self.form, self.row_length = step_form(config, mesh), 0
        parts = self.form.groups * self.form.accumulate
        if config.loop.rows % parts:
            raise InputError(f"loop.rows {config.loop.rows} must be a multiple of {parts} (data x fsdp x accumulate)")
        optimiser = make_base_optimiser(config.optimiser, config.loop.steps, declare_stacked(self.model))
        self._whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self._seed = jax.device_put(np.uint32(config.loop.seed), self._whole)

        def start(seed: jax.Array) -> BaseState:
            params = new_base(self.model, seed)
            return BaseState(params, optimiser.init(params), jnp.zeros((), jnp.int32))  # pyright: ignore[reportArgumentType]

        shapes = jax.eval_shape(start, self._seed)
        self.shardings = state_shardings(shapes, placed, self._whole)
        self.abstract = jax.tree.map(_placed_shape, shapes, self.shardings)
        self._start = jax.jit(start, out_shardings=self.shardings)
        step = partial(base_step, config=self.model, optimiser=optimiser, form=self.form)
        self._step = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, self._whole))
        score = partial(base_score, config=self.model, form=self.form)
        self._score = jax.jit(score, out_shardings=self._whole)
        self._token_bytes = jax.device_put(token_bytes.astype(np.int32), self._whole)
        self._peak: float | None = None

    def start(self) -> BaseState:
        return self._start(self._seed)

    def step(self, state: BaseState, batch: "BaseBatch") -> tuple[BaseState, dict[str, jax.Array]]:
        return self._step(state, self.put(batch))

    def put(self, batch: "BaseBatch") -> BaseRows:
        """This process's rows as its part of the global batch."""
        sharding, self.row_length = rows_sharding(self.mesh), batch.tokens.shape[1]
        place = lambda x: jax.make_array_from_process_local_data(sharding, np.ascontiguousarray(x, np.int32))
        return BaseRows(place(batch.tokens), place(batch.targets), place(batch.segments), place(batch.positions))

    def evaluate(self, params: Base, batches: "Iterator[BaseBatch]") -> tuple[float, float]:
        """Bits per byte of text and nats per target over all batches."""
        parts = [self._score(params, self.put(batch), self._token_bytes) for batch in batches]
        nll, targets, size = (sum(float(part[key]) for part in parts) for key in ("nll", "targets", "bytes"))
        return nll / math.log(2) / max(size, 1), nll / max(targets, 1)

    def share_of_peak(self, tokens_per_s: float, row_length: int) -> float:
        peak = self._peak = self._peak or peak_flops(self.config.peak_tflops) * jax.device_count()
        return tokens_per_s * flops_per_token(self.model, row_length) / peak


def step_form(config: BaseConfig, mesh: jax.sharding.Mesh) -> StepForm:
    """How a step is computed on the devices of a mesh."""
    platform = mesh.devices.flat[0].platform
    on_cpu = platform == "cpu"
    return StepForm(
        compute=("float32" if on_cpu else "bfloat16") if config.compute == "auto" else config.compute,
        remat=("none" if on_cpu else "maps") if config.remat == "auto" else config.remat,
        accumulate=config.loop.accumulate,
        z_weight=config.z_loss,
        groups=mesh.shape["data"] * mesh.shape["fsdp"],
        rows=rows_sharding(mesh) if mesh.size > 1 else None,
        whole=gathered(config.model, mesh) if mesh.size > 1 else None,
        logit_bytes=LOGIT_BYTES.get(platform, ACCELERATOR_LOGIT_BYTES),
        unroll=1 if on_cpu or mesh.size > 1 else config.model.n_layers,
    )


class _Window:
    """The steps since the last report; their figures are fetched together, so that steps need not wait for the host."""

    def __init__(self) -> None:
        self._metrics: list[dict[str, jax.Array]] = []
        self._start = time.perf_counter()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        self._metrics.append(metrics)

    def close(self, step: int, run: BaseRun) -> BaseEvent:
        """The means, and a fresh start. Raises FailureError for a figure that is not finite, naming its step."""
        values = jax.device_get(self._metrics)
        seconds = time.perf_counter() - self._start
        for i, value in enumerate(values):
            loss, norm = float(value["loss"]), float(value["grad_norm"])
            if not math.isfinite(loss) or not math.isfinite(norm):
                at = step - len(values) + 1 + i
                raise FailureError(
                    f"step {at}: the loss is {loss} and the gradient {norm}; checkpoints before it are good:"
                    " lower optimiser.learning_rate, or look at the data of this step"
                )
        rate = sum(int(value["targets"]) for value in values) / seconds
        mean = lambda key: float(np.mean([value[key] for value in values]))
        self.__init__()
        return BaseEvent(step, mean("loss"), mean("grad_norm"), rate, run.share_of_peak(rate, run.row_length))


def _bound(config: BaseConfig) -> dict[str, Any]:
    """What a directory's checkpoints are bound to: all but the mesh, and how often to look and to save."""
    free = {"report_every", "evaluate_every", "evaluate_rows", "checkpoint_every", "keep", "accumulate"}
    whole = dataclasses.asdict(config)
    loop = {key: value for key, value in whole["loop"].items() if key not in free}
    return {key: whole[key] for key in ("model", "optimiser", "z_loss", "data", "tokenizer")} | {"loop": loop}


def _agreed(leaving: bool) -> bool:
    """Whether any process wants to stop: all must do so after the same step."""
    if jax.process_count() == 1:
        return leaving
    return bool(multihost_utils.process_allgather(np.asarray([leaving])).any())


def _placed_shape(x: jax.ShapeDtypeStruct, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
