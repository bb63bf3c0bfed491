"""Bases in Hugging Face's form: a directory with config.json and one or many safetensors files."""

import dataclasses
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mbjax.core.config import ModelConfig, RopeScaling
from mbjax.errors import InputError
from mbjax.io.safetensors_file import map_tensors
from mbjax.io.strict_json import parse_object, shown

MAX_SIZE = 2**31  # of any one dimension
FLOATS = ("float32", "float16", "bfloat16", "float64")


@dataclasses.dataclass(frozen=True)
class _Family:
    qkv_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None  # what the reference implementation assumes where the file says nothing
    window: int | None = None


_FAMILIES = {
    "LlamaForCausalLM": _Family(),
    "MistralForCausalLM": _Family(window=4096),
    "Qwen2ForCausalLM": _Family(qkv_bias=True),
    "Qwen3ForCausalLM": _Family(qk_norm=True, head_dim=128),
}


def read_hf_config(directory: Path) -> ModelConfig:
    """The model's shape from `config.json`, as written by transformers 4 or 5.

    Raises InputError where the file is missing or malformed, or names an architecture, a rope type or a setting
    that is not implemented here; such a thing is named.
    """
    path = directory / "config.json"
    raw = read_json(path)
    name = _architecture(raw, path)
    family = _FAMILIES[name]
    _check_settings(raw, path)
    n_heads, d_model = _size(raw, "num_attention_heads", path), _size(raw, "hidden_size", path)
    max_context = _size(raw, "max_position_embeddings", path)
    _check_window(raw, family, max_context, path)
    theta, scaling = _rope(raw, max_context, path)
    try:
        return ModelConfig(
            n_layers=_size(raw, "num_hidden_layers", path),
            d_model=d_model,
            n_heads=n_heads,
            n_kv_heads=_size(raw, "num_key_value_heads", path, n_heads),
            head_dim=_size(raw, "head_dim", path, family.head_dim or d_model // n_heads),
            d_ff=_size(raw, "intermediate_size", path),
            vocab_size=_size(raw, "vocab_size", path),
            max_context=max_context,
            rope_theta=theta,
            rms_eps=_positive(raw, "rms_norm_eps", path, 1e-6),
            tied_head=raw.get("tie_word_embeddings", False) is True,
            qkv_bias=family.qkv_bias,
            qk_norm=family.qk_norm,
            rope_scaling=scaling,
        )
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def hf_weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory: one, or the shards that its index names.

    Raises InputError where there is none, or where the index is malformed or leads out of the directory.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise InputError(f"{directory}: holds no model.safetensors; mbjax reads no other weight files")
    return [directory / name for name in sorted(set(_weight_map(index).values()))]


def read_hf_weights(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor by HF name, mapped as stored (float32, float16, bfloat16 or float64).

    Raises InputError where a file is missing or malformed, a tensor is in no or in two shards, or has another dtype.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in hf_weight_files(directory):
        for name, array in map_tensors(path).items():
            if name in tensors:
                raise InputError(f"{path}: tensor {name} is in another shard too")
            if array.dtype.name not in FLOATS:
                raise InputError(f"{path}: tensor {name} is {array.dtype}; only float weights are read")
            tensors[name] = array
    if not (directory / "model.safetensors").exists():
        index = directory / "model.safetensors.index.json"
        missing = sorted(set(_weight_map(index)) - set(tensors))
        if missing:
            raise InputError(f"{index}: names tensors that no shard holds: {', '.join(missing)}")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError where the file is missing, unreadable or something else."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_object(data, str(path))


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: has no weight_map; fetch it again")
    for name, file in weight_map.items():
        plain = isinstance(file, str) and file.isprintable() and not set(file) & set("/\\:")
        if not plain or not file.endswith(".safetensors") or not name.isprintable():
            raise InputError(f"{index}: {shown(name)} lies in {shown(str(file))}, not in a file beside the index")
    return weight_map


def _architecture(raw: dict[str, Any], path: Path) -> str:
    names = raw.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in _FAMILIES:
        _refuse(path, f"architecture {shown(str(name))}; known: {', '.join(_FAMILIES)}")
    return name


def _check_settings(raw: dict[str, Any], path: Path) -> None:
    if raw.get("hidden_act", "silu") != "silu":
        _refuse(path, f"hidden_act {shown(str(raw['hidden_act']))}; only silu is implemented")
    for key in ("attention_bias", "mlp_bias"):
        if raw.get(key):
            _refuse(path, f"{key}: true")
    if raw.get("quantization_config"):
        _refuse(path, "quantization_config; give the unquantised model or a GGUF file")


def _check_window(raw: dict[str, Any], family: _Family, max_context: int, path: Path) -> None:
    kinds = raw.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        _refuse(path, "layer_types other than full_attention")
    window = raw.get("sliding_window", family.window) if family.window or raw.get("use_sliding_window") else None
    if window is not None and (type(window) is not int or window < max_context):
        _refuse(path, f"a sliding_window of {str(window)[:20]} within {max_context} positions")


def _rope(raw: dict[str, Any], max_context: int, path: Path) -> tuple[float, RopeScaling | None]:
    rope = {key: raw[key] for key in ("rope_theta", "partial_rotary_factor") if raw.get(key) is not None}
    for key in ("rope_scaling", "rope_parameters"):  # transformers 4 and 5
        part = raw.get(key) or {}
        if not isinstance(part, dict) or any(isinstance(value, dict) for value in part.values()):
            _refuse(path, f"{key} of another form")
        rope |= part
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        _refuse(path, f"partial_rotary_factor {str(rope['partial_rotary_factor'])[:20]}")
    theta = _positive(rope, "rope_theta", path, 10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind in ("default", None):
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", factor=_positive(rope, "factor", path))
    if kind != "llama3":
        _refuse(path, f"rope type {shown(str(kind))}; known: default, linear, llama3")
    low, high = _positive(rope, "low_freq_factor", path), _positive(rope, "high_freq_factor", path)
    if low >= high:
        raise InputError(f"{path}: low_freq_factor {low} must be below high_freq_factor {high}")
    trained = _size(rope, "original_max_position_embeddings", path, max_context)
    return theta, RopeScaling("llama3", _positive(rope, "factor", path), low, high, trained)


def _size(raw: dict[str, Any], key: str, path: Path, default: int | None = None) -> int:
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < MAX_SIZE:
        raise InputError(f"{path}: {key} is {str(value)[:40]}; it must be an integer of at least 1")
    return value


def _positive(raw: dict[str, Any], key: str, path: Path, default: float | None = None) -> float:
    value = raw.get(key)
    value = default if value is None else value
    if not isinstance(value, int | float) or isinstance(value, bool) or not 1e-30 < value < 1e30:
        raise InputError(f"{path}: {key} is {str(value)[:40]}; it must be a positive number")
    return float(value)


def _refuse(path: Path, what: str) -> NoReturn:
    raise InputError(f"{path}: not supported: {what}")
