"""A model configuration as JSON, and back with every field bounded."""

import dataclasses
from typing import Any

from mbjax.core.config import ModelConfig, RopeScaling
from mbjax.io.strict_json import Fields

MAX_LAYERS = 1_024
MAX_WIDTH = 131_072  # of the model and of an expert
MAX_FF = 1_048_576
MAX_HEADS = 1_024
MAX_HEAD_DIM = 4_096
MAX_VOCAB = 8_388_608
MAX_CONTEXT = 67_108_864
_KINDS = ("linear", "llama3", "factors")


def config_json(config: ModelConfig) -> dict[str, Any]:
    """Every field by its name; `rope_scaling` is an object or null."""
    floats = {"rope_theta": float(config.rope_theta), "rms_eps": float(config.rms_eps)}
    return dataclasses.asdict(config) | floats | {"rope_scaling": _scaling_json(config.rope_scaling)}


def read_config(fields: Fields) -> ModelConfig:
    """The configuration that `config_json` wrote. Raises InputError for a missing, unknown or absurd field."""
    names = ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_ff", "vocab_size", "max_context")
    most = (MAX_LAYERS, MAX_WIDTH, MAX_HEADS, MAX_HEADS, MAX_HEAD_DIM, MAX_FF, MAX_VOCAB, MAX_CONTEXT)
    sizes = {name: fields.integer(name, 1, limit) for name, limit in zip(names, most, strict=True)}
    rope_theta, rms_eps = fields.number("rope_theta", 1.0, 1e12), fields.number("rms_eps", 1e-12, 1.0)
    flags = {name: fields.flag(name) for name in ("tied_head", "qkv_bias", "qk_norm")}
    tap = fields.integer("tap", 0, sizes["n_layers"])
    if sizes["head_dim"] % 2:
        fields.refuse("head_dim", "must be even")
    if sizes["n_heads"] % sizes["n_kv_heads"]:
        fields.refuse("n_heads", "must be a multiple of n_kv_heads")
    scaling = None
    if fields.has("rope_scaling"):
        scaling = _read_scaling(fields.object("rope_scaling"), sizes["head_dim"] // 2)
    fields.done()
    return ModelConfig(**sizes, rope_theta=rope_theta, rms_eps=rms_eps, **flags, rope_scaling=scaling, tap=tap)


def _scaling_json(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    floats = {key: float(getattr(scaling, key)) for key in ("factor", "low_freq_factor", "high_freq_factor")}
    return dataclasses.asdict(scaling) | floats | {"factors": [float(by) for by in scaling.factors]}


def _read_scaling(fields: Fields, n_frequencies: int) -> RopeScaling:
    kind = fields.text("kind", 20)
    if kind not in _KINDS:
        fields.refuse("kind", f"must be one of {', '.join(_KINDS)}")
    scaling = RopeScaling(
        kind=kind,
        factor=fields.number("factor", 1e-6, 1e6),
        low_freq_factor=fields.number("low_freq_factor", 1e-6, 1e6),
        high_freq_factor=fields.number("high_freq_factor", 1e-6, 1e6),
        original_max_position=fields.integer("original_max_position", 1, MAX_CONTEXT),
        factors=fields.numbers("factors", MAX_HEAD_DIM, 1e-6, 1e6),
    )
    if len(scaling.factors) != (n_frequencies if kind == "factors" else 0):
        fields.refuse("factors", f"must be {n_frequencies} numbers for the kind 'factors' and none for any other")
    if kind == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
        fields.refuse("high_freq_factor", "must exceed low_freq_factor")
    fields.done()
    return scaling
