"""The optimiser of a run, from its configuration."""

from typing import Any

import jax
import optax
from optax import contrib

from mbjax.core.base_train import is_matrix
from mbjax.core.param import map_params
from mbjax.training.base_config import BaseOptimiserConfig
from mbjax.training.config import OptimiserConfig


def make_optimiser(config: OptimiserConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW, or Muon (Jordan et al. 2024) for matrices with AdamW for the rest; warm-up and cosine.

    Scales of low-rank deltas stay as they are: they are settings, not weights.
    """
    warmup = max(1, round(config.warmup * steps))
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, warmup, max(steps, warmup + 1), 0.1 * config.learning_rate
    )
    if config.name == "muon":
        rule = contrib.muon(rate, weight_decay=config.weight_decay, adam_weight_decay=config.weight_decay)
    else:
        rule = optax.adamw(rate, weight_decay=config.weight_decay)
    trained = optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
    return optax.multi_transform({"train": trained, "keep": optax.set_to_zero()}, _labels)


def _labels(pack: Any) -> Any:
    return jax.tree.map_with_path(
        lambda path, _: "keep" if jax.tree_util.keystr(path).endswith(".scale") else "train", pack
    )


def make_base_optimiser(config: BaseOptimiserConfig, steps: int, declared: Any) -> optax.GradientTransformation:
    """The same two rules for a base: warm-up, a constant rate, and a linear decay to 0 at the end (WSD, MiniCPM 4).

    declared: the tree of `Param` that is trained. Only matrices decay; Muon takes those of the layers, with updates
    scaled to the size of AdamW's (Liu et al. 2025) so that one rate fits both.
    """
    warmup, decay = max(1, round(config.warmup * steps)), max(1, round(config.decay * steps))
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, warmup),
            optax.constant_schedule(config.learning_rate),
            optax.linear_schedule(config.learning_rate, 0.0, decay),
        ],
        [warmup, max(warmup, steps - decay)],
    )
    matrices = map_params(is_matrix, declared)
    if config.name == "muon":
        numbers = jax.tree.map_with_path(
            lambda path, matrix: contrib.MuonDimensionNumbers(-1, -2) if matrix and "layers" in str(path[0]) else None,
            matrices,
        )
        rule = contrib.muon(
            rate,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=numbers,
            consistent_rms=0.2,
        )
    else:
        rule = optax.adamw(rate, config.b1, config.b2, weight_decay=config.weight_decay, mask=matrices)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
