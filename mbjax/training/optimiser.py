"""The optimiser of a run, from its configuration."""

from typing import Any

import jax
import optax
from optax import contrib

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
