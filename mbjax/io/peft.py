"""PEFT LoRA adapters: a directory of `adapter_config.json` and `adapter_model.safetensors` to a pack and back.

Format: github.com/huggingface/peft, docs/source/developer_guides/checkpoint.md. Both store A as [rank, in] and B as
[out, rank], in the HF layout of heads, so that values pass unchanged.
"""

import collections
import dataclasses
import io
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from mbjax.core.config import ModelConfig
from mbjax.core.lora import TARGETS, LayerLora, Lora, LowRank, map_shapes
from mbjax.core.pack import Pack
from mbjax.io.files import new_directory
from mbjax.io.pack_files import PackFolder, write_file
from mbjax.io.peft_config import PeftConfig, read_peft_config
from mbjax.io.safetensors_file import parse_tensors, write_safetensors
from mbjax.io.strict_json import refuse, shown

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_MAX_CONFIG, _MAX_TENSORS = 2**22, 2**34  # bytes
_MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_TARGETS = {module: target for target, module in _MODULES.items()}
_NAME = re.compile(r"base_model\.model\.((?:model\.)?layers\.(0|[1-9]\d{0,4})\.([a-z_.]+))\.lora_(A|B)\.weight")
_FLOATS = ("float16", "bfloat16", "float32", "float64")

Key = tuple[int, str]  # layer, target


@dataclasses.dataclass(frozen=True)
class ImportedAdapter:
    """A pack with a `lora` part, and the name of the model that the adapter says it was made for."""

    pack: Pack
    base_model: str | None


def is_peft(path: Path) -> bool:
    """Whether a directory looks like a PEFT adapter."""
    return (path / CONFIG).exists()


def import_peft(path: Path, config: ModelConfig) -> ImportedAdapter:
    """Reads a PEFT LoRA adapter for a base of this configuration; values float32.

    Every tensor of the file is used and every delta that the configuration announces is there, or the adapter is
    refused with the key paths that are too many or too few. Raises InputError of one line for that, for forms a pack
    cannot hold (DoRA, trained biases or embeddings, saved modules, ...), for shapes that do not fit the base, and for
    damaged files.
    """
    folder = PackFolder(path)
    try:
        if TENSORS not in folder.names() and "adapter_model.bin" in folder.names():
            refuse(str(path), f"holds a pickle, which is never opened; save it again as {TENSORS}")
        settings = read_peft_config(_read(folder, CONFIG, _MAX_CONFIG), str(path / CONFIG))
        tensors, _ = parse_tensors(_read(folder, TENSORS, _MAX_TENSORS), path / TENSORS)
    finally:
        folder.close()
    where = str(path / TENSORS)
    pairs, modules = _paired(tensors, config, where)
    _check_complete(pairs, modules, settings, config, where)
    shapes = map_shapes(config)
    layers: list[dict[str, LowRank]] = [{} for _ in range(config.n_layers)]
    for (layer, target), pair in pairs.items():
        layers[layer][target] = _low_rank(pair, modules[layer, target], settings, shapes[target], where)
    pack = Pack(lora=Lora(tuple(LayerLora(**maps) if maps else None for maps in layers)))
    return ImportedAdapter(pack, settings.base_model)


def export_peft(path: Path, pack: Pack, base_model: str) -> None:
    """Writes the `lora` part of a pack as a PEFT adapter, float32; `base_model` is the name noted in it.

    Raises InputError where the pack has an expert part (PEFT has no form for it) or `path` is not free, FailureError
    where the system refuses to write.
    """
    if pack.expert is not None or pack.lora is None:
        refuse(str(path), "a PEFT adapter holds a lora part only, and this pack has an expert part")
    if path.exists() and (not path.is_dir() or os.listdir(path)):
        refuse(str(path), "exists already; give another name")
    deltas = {
        (i, target): delta
        for i, layer in enumerate(pack.lora.layers)
        for target in TARGETS
        if (delta := getattr(layer, target, None)) is not None
    }
    tensors = {}
    for key, delta in deltas.items():
        stem = f"base_model.model.{_module(key)}"
        tensors[f"{stem}.lora_A.weight"] = np.asarray(delta.a, np.float32)
        tensors[f"{stem}.lora_B.weight"] = np.asarray(delta.b, np.float32)
    buffer = io.BytesIO()
    specs = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    write_safetensors(buffer, specs, tensors.items(), {"format": "pt"})
    with new_directory(path) as temporary:
        write_file(temporary / TENSORS, buffer.getvalue())
        write_file(temporary / CONFIG, json.dumps(_settings(deltas, base_model), indent=2).encode())


def _read(folder: PackFolder, name: str, most: int) -> bytes:
    return folder.read(name, lambda size: size <= most or f"has {size} bytes; at most {most} are read")


def _module(key: Key) -> str:
    return f"model.layers.{key[0]}.{_MODULES[key[1]]}"


def _paired(
    tensors: dict[str, np.ndarray], config: ModelConfig, where: str
) -> tuple[dict[Key, dict[str, np.ndarray]], dict[Key, str]]:
    """A and B of every map, and the module's name as PEFT knew it; every tensor has its place or is named."""
    pairs: dict[Key, dict[str, np.ndarray]] = collections.defaultdict(dict)
    modules: dict[Key, str] = {}
    unused = []
    for name, array in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or match[3] not in _TARGETS or int(match[2]) >= config.n_layers:
            unused.append(name)
            continue
        key = int(match[2]), _TARGETS[match[3]]
        if modules.setdefault(key, match[1]) != match[1]:
            unused.append(name)
        pairs[key][match[4]] = array
    if unused:
        refuse(where, f"tensors that the base has no place for: {_some(unused)}")
    lonely = [f"{modules[key]}.lora_{'B' if 'A' in pair else 'A'}" for key, pair in pairs.items() if len(pair) < 2]
    if lonely:
        refuse(where, f"tensors missing: {_some(lonely)}")
    return pairs, modules


def _check_complete(
    pairs: dict[Key, Any], modules: dict[Key, str], settings: PeftConfig, config: ModelConfig, where: str
) -> None:
    if not pairs:
        refuse(where, "holds no low-rank tensor")
    if settings.targets is None:
        return
    prefix = "model." if any(module.startswith("model.") for module in modules.values()) else ""
    every = {(i, t): f"{prefix}layers.{i}.{_MODULES[t]}" for i in range(config.n_layers) for t in TARGETS}
    announced = {key for key, module in every.items() if settings.touches(module, key[0])}
    if missing := [every[key] for key in announced - set(pairs)]:
        refuse(where, f"{CONFIG} announces deltas that are not there: {_some(missing)}")
    if extra := [modules[key] for key in set(pairs) - announced]:
        refuse(where, f"{CONFIG} does not name the modules of these tensors: {_some(extra)}")
    ends = {module.rsplit(".", 1)[1] for module in every.values()}
    if strange := [name for name in settings.targets if name.rsplit(".", 1)[-1] not in ends]:
        refuse(where, f"{CONFIG} names target modules that a pack cannot hold: {_some(strange)}")


def _low_rank(
    pair: dict[str, np.ndarray], module: str, settings: PeftConfig, shape: tuple[int, int], where: str
) -> LowRank:
    rank = settings.rank_of(module)
    wanted = {"A": (rank, shape[1]), "B": (shape[0], rank)}
    values: dict[str, Any] = {"scale": np.asarray(settings.scale_of(module), np.float32)}
    for letter, array in pair.items():
        name = f"{module}.lora_{letter}"
        if array.dtype.name not in _FLOATS:
            refuse(where, f"{name} is {array.dtype.name}; only plain floating-point adapters can be imported")
        if array.shape != wanted[letter]:
            refuse(where, f"{name} has shape {list(array.shape)}, the base and {CONFIG} ask for {list(wanted[letter])}")
        with np.errstate(over="ignore", invalid="ignore"):  # a float64 may be too large: found out below
            values[letter.lower()] = array.astype(np.float32)
        if not np.isfinite(values[letter.lower()]).all():
            refuse(where, f"{name} holds NaN or infinite values")
    return LowRank(**values)


def _settings(deltas: dict[Key, LowRank], base_model: str) -> dict[str, Any]:
    """An adapter_config.json: the commonest rank and alpha, and patterns for the maps that have others."""
    ranks = {key: int(delta.a.shape[0]) for key, delta in deltas.items()}
    alphas = {key: _short(float(delta.scale) * ranks[key]) for key, delta in deltas.items()}
    rank, alpha = (collections.Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    layers, targets = sorted({i for i, _ in deltas}), sorted({t for _, t in deltas}, key=TARGETS.index)
    even = len(deltas) == len(layers) * len(targets)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "target_modules": [_MODULES[t].split(".")[1] for t in targets] if even else [_module(key) for key in deltas],
        "layers_to_transform": layers if even else None,
        "rank_pattern": {_module(key): value for key, value in ranks.items() if value != rank},
        "alpha_pattern": {_module(key): value for key, value in alphas.items() if value != alpha},
    }


def _short(alpha: float) -> float:
    """A whole number where rounding of alpha / rank to float32 is all that is between."""
    return float(round(alpha)) if math.isclose(alpha, round(alpha), rel_tol=1e-6) else alpha


def _some(names: list[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(name if name.isascii() and len(name) <= 120 else shown(name) for name in names[:5]) + more
