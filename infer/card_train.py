"""How fast packs and a base train on the accelerator: for `card.py`. Memory is not limited here.

Operations are counted as by Chowdhery et al. 2022, appendix B: nothing that is made again counts, attention is
12 H E T a token and layer forwards and backwards. A pack's token: 4 for every weight of the frozen fusion layers
(forwards, and the gradient of the states), 6 for every weight of the pack, and the head's 4 D V for scored positions.
"""

import importlib
import math
import statistics as stats
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from card_cells import Cell
from card_child import Notes
from card_decode import layer_params
from card_model import base_shapes, random_base

from mbjax.core.config import ModelConfig
from mbjax.core.expert import copy_layers, declare_expert, expert_config
from mbjax.core.lora import declare_lora
from mbjax.core.ops import Rows
from mbjax.core.pack import Pack
from mbjax.core.param import init_params
from mbjax.core.train import Batch, TrainState, train_step

EXPERT_LAYERS, RANK = 2, 16
SCORED = 2  # of so many tokens one is an answer's


def warm(cell: Cell, notes: Notes) -> None:
    """Compiles for the largest batch, the first that is tried."""
    if cell.part == "train_base":
        run, placed = base_run(cell, cell.scale.base_rows[0])
        begin = time.perf_counter()
        run._step.lower(run.abstract, placed).compile()
        notes.put(compile_s=time.perf_counter() - begin)
        return
    work = PackWork(cell, cell.scale.rows[0])
    base = base_shapes(cell.config, "bfloat16")
    state = jax.eval_shape(lambda: work.state(None))
    batch = jax.eval_shape(work.batch)
    begin = time.perf_counter()
    work.step.lower(state, base, batch, jax.ShapeDtypeStruct((), jnp.uint32)).compile()
    notes.put(compile_s=time.perf_counter() - begin)


def measure(cell: Cell, notes: Notes) -> None:
    if cell.part == "train_base":
        measure_base(cell, notes)
        return
    base = random_base(cell.config, "bfloat16")

    def work(rows: int) -> tuple[Callable[[Any], Any], Callable[[], Any]]:
        own, seed = PackWork(cell, rows), jnp.uint32(0)
        batch = jax.jit(own.batch)()
        return (lambda state: own.step(state, base, batch, seed)[0]), (lambda: own.state(base))

    notes.put(**first_fitting(work, cell.scale.rows, cell.scale.row, cell.scale.train_steps, notes))
    notes.put(flops=notes.found["rows"] * cell.scale.row * PackWork(cell, 1).flops_per_token())


class PackWork:
    """One kind of pack and one size of a batch."""

    def __init__(self, cell: Cell, rows: int) -> None:
        from mbjax.training.config import OptimiserConfig
        from mbjax.training.optimiser import make_optimiser

        self.config, self.kind, self.rows, self.row = cell.config, cell.dtype, rows, cell.scale.row
        self.optimiser = make_optimiser(OptimiserConfig(), 1000)
        step = partial(train_step, config=self.config, optimiser=self.optimiser, gate_range=(0.4, 1.0))
        self.step = jax.jit(partial(step, rows_at_once=rows), donate_argnums=0)

    def state(self, base: Any) -> TrainState:
        """A new pack, an expert's layers started as copies of the base's, in float32."""
        key = jax.random.key(0)
        if self.kind == "lora":
            pack = Pack(lora=init_params(declare_lora(self.config, RANK, 2.0 * RANK), key))
        else:
            expert = init_params(declare_expert(self.config, expert_config(self.config, EXPERT_LAYERS)), key)
            if base is not None:
                expert = copy_layers(expert, base, self.config.n_layers - EXPERT_LAYERS)
            pack = Pack(expert=jax.tree.map(lambda x: jnp.array(x, jnp.float32), expert))
        return TrainState(pack, self.optimiser.init(pack), jnp.zeros((), jnp.int32))  # pyright: ignore[reportArgumentType]

    def batch(self) -> Batch:
        """Random tokens, four examples to a row behind a shared prefix."""
        n, t = self.rows, self.row
        tokens = jax.random.randint(jax.random.key(1), (n, t), 0, self.config.vocab_size, jnp.int32)
        tap = jax.random.normal(jax.random.key(2), (n, t, self.config.d_model), jnp.bfloat16)
        prefix, example = t // 8, (t - t // 8) // 4
        at = np.arange(t)
        segments = np.where(at < prefix, 0, 1 + np.minimum((at - prefix) // example, 3)).astype(np.int32)
        starts = np.where(segments > 0, prefix + (segments - 1) * example, 0)
        positions = np.where(segments > 0, prefix + at - starts, at).astype(np.int32)
        scored = np.arange(t - t // SCORED, t, dtype=np.int32) - 1
        wide = lambda x: jnp.broadcast_to(jnp.asarray(x), (n, *x.shape))
        return Batch(tokens, Rows(wide(positions), wide(segments)), wide(scored), tokens[:, -scored.size :], tap)

    def flops_per_token(self) -> float:
        config, fusion = self.config, self.config.n_layers - self.config.tap
        attention = 12 * config.n_heads * config.head_dim * self.row
        pack = jax.tree.leaves(jax.eval_shape(lambda: self.state(None)).pack)
        own = sum(math.prod(leaf.shape) for leaf in pack if len(leaf.shape) == 2)
        depth = fusion + (EXPERT_LAYERS if self.kind == "expert" else 0)
        head = 4 * config.d_model * config.vocab_size / SCORED
        return 4 * fusion * layer_params(config) + depth * attention + 6 * own + head


def first_fitting(
    work: Callable[[int], tuple[Callable[[Any], Any], Callable[[], Any]]],
    sizes: tuple[int, ...],
    row: int,
    steps: int,
    notes: Notes,
) -> dict[str, Any]:
    """Median seconds of a step with the first number of rows that fits into memory. Raises what the last one raised."""
    refused: dict[str, str] = {}
    for rows in sizes:
        try:
            begin = time.perf_counter()
            step, start = work(rows)
            state = jax.block_until_ready(step(start()))
            first = time.perf_counter() - begin
            seconds = []
            for _ in range(3):
                begin = time.perf_counter()
                for _ in range(steps):
                    state = step(state)
                jax.block_until_ready(state)
                seconds.append((time.perf_counter() - begin) / steps)
        except Exception as error:  # only its words tell that memory was what lacked
            refused[str(rows)] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            notes.put(refused=refused)
            if "RESOURCE_EXHAUSTED" not in str(error) or rows == sizes[-1]:
                raise
            continue
        step_s = stats.median(seconds)
        peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return {"rows": rows, "row": row, "step_s": step_s, "tok_s": rows * row / step_s, "first_s": first,
                "peak_bytes_in_use": peak}  # fmt: skip
    raise ValueError("no number of rows was given")


def base_run(cell: Cell, rows: int) -> tuple[Any, Any]:
    """The run of `mbjax train base` for the shape, and a batch of random rows of one document each."""
    names = ("base_loop", "base_config", "mesh")
    try:
        loop, forms, mesh = (importlib.import_module(f"mbjax.training.{name}") for name in names)
    except ImportError as error:
        raise RuntimeError(f"training a base is not there to be measured: {error}") from error
    settings = forms.BaseConfig("card", "none", cell.config, (), loop=forms.BaseLoopConfig(rows=rows))
    run = loop.BaseRun(settings, mesh.make_mesh(settings.mesh), np.ones(cell.config.vocab_size, np.int32))
    return run, run.put(_BaseRows(cell.config, rows, cell.scale.base_row))


def measure_base(cell: Cell, notes: Notes) -> None:
    scale = cell.scale

    def work(rows: int) -> tuple[Callable[[Any], Any], Callable[[], Any]]:
        run, placed = base_run(cell, rows)
        return (lambda state: run._step(state, placed)[0]), run.start

    notes.put(**first_fitting(work, scale.base_rows, scale.base_row, scale.train_steps, notes))
    per_token = importlib.import_module("mbjax.training.flops").flops_per_token(cell.config, scale.base_row)
    notes.put(flops=notes.found["rows"] * scale.base_row * per_token)


class _BaseRows:
    """Rows as `BaseRun.put` takes them."""

    def __init__(self, config: ModelConfig, rows: int, row: int) -> None:
        self.tokens = np.random.default_rng(4).integers(0, config.vocab_size, (rows, row), np.int32)
        self.targets = np.concatenate([self.tokens[:, 1:], np.full((rows, 1), -1, np.int32)], axis=1)
        self.segments = np.ones((rows, row), np.int32)
        self.positions = np.broadcast_to(np.arange(row, dtype=np.int32), (rows, row))
