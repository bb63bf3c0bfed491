"""What a run of `mbjax train base` is told: one TOML file, read strictly."""

import dataclasses
from pathlib import Path

from mbjax.core.base_train import REMAT
from mbjax.core.config import DTYPES, ModelConfig
from mbjax.errors import InputError
from mbjax.training.config import Rule, build, check_rules, read_toml


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """A corpus written by `mbjax train data` (folders train and valid), relative to the configuration's folder."""

    path: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 for one of them means what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class BaseOptimiserConfig:
    """AdamW, or Muon for the layers' matrices with AdamW for the rest; warm-up, a constant rate, linear decay to 0."""

    name: str = "adamw"
    learning_rate: float = 1e-3
    warmup: float = 0.02  # share of all steps
    decay: float = 0.2  # share of all steps, the last ones
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.95


@dataclasses.dataclass(frozen=True)
class BaseLoopConfig:
    """How long, how wide, and how often to look and to save."""

    steps: int = 1000
    rows: int = 8  # packed rows of one step, over all devices
    accumulate: int = 1  # parts of a step's rows that are computed one after the other
    seed: int = 0
    report_every: int = 10
    evaluate_every: int = 200
    evaluate_rows: int = 256  # at most so many rows of the held-out text, the same ones each time; 0 for all of it
    checkpoint_every: int = 200
    keep: int = 2


@dataclasses.dataclass(frozen=True)
class BaseConfig:
    """One run of `mbjax train base`. The mesh may change from one start of a run to the next; nothing else may."""

    name: str
    tokenizer: str  # folder of `mbjax train tokenizer`, relative to the configuration's folder
    model: ModelConfig  # `vocab_size` is at least that of the tokenizer
    data: tuple[CorpusConfig, ...]
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    optimiser: BaseOptimiserConfig = dataclasses.field(default_factory=BaseOptimiserConfig)
    loop: BaseLoopConfig = dataclasses.field(default_factory=BaseLoopConfig)
    compute: str = "auto"  # dtype of the products: bfloat16 on accelerators, float32 on the CPU
    remat: str = "auto"  # none, maps or full: what a layer makes again instead of keeping; auto: maps, on the CPU none
    z_loss: float = 1e-4
    peak_tflops: float | None = None  # of one device, for the share that is used; None: known or measured


def read_base_config(path: Path) -> BaseConfig:
    """Reads and checks a TOML file. Raises InputError that names the file and the key."""
    document = read_toml(path, "configs/base/ holds some")
    try:
        config = build(BaseConfig, document, str(path))
    except ValueError as error:  # the shape's own
        raise InputError(f"{path}: model: {error}") from None
    check_rules(_rules(config), str(path))
    return config


def _rules(config: BaseConfig) -> list[Rule]:
    loop, optimiser, mesh = config.loop, config.optimiser, config.mesh
    sizes = (mesh.data, mesh.fsdp, mesh.tensor)
    counts = (loop.steps, loop.rows, loop.accumulate, loop.report_every, loop.evaluate_every, loop.checkpoint_every)
    return [
        (bool(config.name) and not set(config.name) & set("/\\"), "name", "a plain name"),
        (config.model.tap == config.model.n_layers // 2, "model.tap", "left out: what is exported has no place for it"),
        (bool(config.data), "data", "at least one table [[data]] with a path"),
        (all(corpus.weight > 0 for corpus in config.data), "data.weight", "above 0"),
        (min(*counts, loop.keep) >= 1 and loop.evaluate_rows >= 0, "loop", "all >= 1 (evaluate_rows: >= 0)"),
        (loop.rows % loop.accumulate == 0, "loop.rows", "a multiple of loop.accumulate"),
        (sizes.count(-1) <= 1 and all(n == -1 or n >= 1 for n in sizes), "mesh", "counts, at most one of them -1"),
        (optimiser.name in ("adamw", "muon"), "optimiser.name", "adamw or muon"),
        (optimiser.learning_rate > 0, "optimiser.learning_rate", "above 0"),
        (
            min(optimiser.warmup, optimiser.decay) >= 0 and optimiser.warmup + optimiser.decay <= 1,
            "optimiser.warmup and optimiser.decay",
            "shares of the steps, at most 1 together",
        ),
        (config.compute in ("auto", *DTYPES), "compute", f"auto, {' or '.join(DTYPES)}"),
        (config.remat in ("auto", *REMAT), "remat", f"auto, {', '.join(REMAT)}"),
        (config.z_loss >= 0, "z_loss", "at least 0"),
        (config.peak_tflops is None or config.peak_tflops > 0, "peak_tflops", "above 0"),
    ]
