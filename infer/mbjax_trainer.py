"""mbjax's side of `compare_peft.py`: a pack of the default form, trained on cached tap states."""

import argparse
import dataclasses
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from training_plan import Plan
from training_worker import ALPHA, CLIP, DECAY, RANK, RATE, WARMUP, memory, serve

from mbjax.core.train import TrainState, train_step
from mbjax.engine.compile_cache import use_compile_cache
from mbjax.io.load import LoadedBase, load_base
from mbjax.io.peft import export_peft
from mbjax.training.compiled import compile_lean
from mbjax.training.config import DataConfig, LoraConfig, OptimiserConfig, PackConfig
from mbjax.training.optimiser import make_optimiser
from mbjax.training.pack_loop import TrainData, new_pack
from mbjax.training.rows import PackedRows
from mbjax.training.tap_cache import tap_cache

_CONFIG = PackConfig(
    id="compared",
    data=DataConfig("", ""),
    lora=LoraConfig(RANK, ALPHA),
    optimiser=OptimiserConfig("adamw", RATE, WARMUP, DECAY, CLIP),
)


class MbjaxTrainer:
    def __init__(self, plan: Plan, base: LoadedBase) -> None:
        self._plan, self._base = plan, base

    def prepare(self, steps: int) -> float:
        begin, base, config = time.perf_counter(), self._base, self._base.config
        rows = _rows(self._plan, steps * self._plan.step_rows)
        digest = f"{base.digest} {time.time_ns()}"  # states of an earlier run are not to be found: building counts
        tap = tap_cache(base.params, digest, config, rows)
        Path(str(tap.filename)).unlink()  # pyright: ignore[reportAttributeAccessIssue]: a memory map, valid still
        base.release()  # as `mbjax pack train` does
        self._data = TrainData(rows, tap)
        seconds = time.perf_counter() - begin
        optimiser = make_optimiser(_CONFIG.optimiser, steps)
        gates = (_CONFIG.loop.gates[0], _CONFIG.loop.gates[1])
        step = partial(train_step, config=config, optimiser=optimiser, gate_range=gates)
        pack = jax.tree.map(jnp.copy, new_pack(_CONFIG, base.params, config))
        self._state = TrainState(pack, optimiser.init(pack), jnp.zeros((), jnp.int32))  # pyright: ignore[reportArgumentType]
        first = self._data.batch(self._plan.rows_of(0))
        seed = jnp.asarray(np.uint32(0))
        self._step = compile_lean(step, self._state, base.params, first, seed, donate_argnums=0)
        return seconds

    def step(self, number: int) -> float:
        batch = self._data.batch(self._plan.rows_of(number))
        self._state, metrics = self._step(self._state, self._base.params, batch, jnp.asarray(np.uint32(0)))
        return float(metrics["loss"])

    def save(self, folder: Path) -> None:
        export_peft(folder, self._state.pack, self._base.name)


def _rows(plan: Plan, n: int) -> PackedRows:
    names = [field.name for field in dataclasses.fields(PackedRows) if field.name not in ("lines", "prefix")]
    return PackedRows(**{name: getattr(plan, name)[:n] for name in names}, lines=(), prefix=plan.prefix)


def main() -> None:
    imported = memory()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the plan is")
    parser.add_argument("base")
    arguments = parser.parse_args()
    use_compile_cache()
    plan = Plan.load(arguments.folder)
    serve(MbjaxTrainer(plan, load_base(arguments.base, "float32")), plan, imported)


if __name__ == "__main__":
    main()
