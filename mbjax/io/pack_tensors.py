"""The tensors of a pack by name: what a manifest announces, and a pack as a flat table and back.

Names are the paths in the pytree: `lora.15.q.a`, `lora.15.q.b`, `lora.15.q.scale`, `expert.into`,
`expert.layers.0.attn.q`, `expert.norm`, ...; the router's key tensors are `route.NAME`.
"""

import collections
from typing import Any

import jax
import numpy as np

from mbjax.core.config import ModelConfig
from mbjax.core.expert import declare_expert, expert_config
from mbjax.core.lora import TARGETS, LayerLora, Lora, LowRank, map_shapes
from mbjax.core.pack import Pack
from mbjax.core.param import abstract_params, fan_in, ones, param, zeros
from mbjax.io.pack_manifest import ExpertPart, LoraPart

_EXPERT_SETTINGS = ("n_heads", "n_kv_heads", "head_dim", "qkv_bias", "qk_norm")


def parts_of(pack: Pack) -> tuple[ExpertPart | None, LoraPart | None]:
    """The manifest's description of a pack's parts."""
    expert = None
    if pack.expert is not None:
        shape = pack.expert.config
        expert = ExpertPart(shape.n_layers, shape.d_model, shape.d_ff)
    return expert, _lora_part(pack.lora) if pack.lora is not None else None


def declared(expert: ExpertPart | None, lora: LoraPart | None, config: ModelConfig) -> Pack:
    """The pack that a manifest announces for a base, as a tree of `Param`."""
    declared_expert = None
    if expert is not None:
        shape = expert_config(config, expert.n_layers, expert.d_model, expert.d_ff)
        declared_expert = declare_expert(config, shape)
    return Pack(expert=declared_expert, lora=_declared_lora(lora, config) if lora is not None else None)


def announced(expert: ExpertPart | None, lora: LoraPart | None, config: ModelConfig, dtype: str) -> Pack:
    """The same as shapes and dtypes: matrices in `dtype`, norms, biases and scales in float32."""
    return abstract_params(declared(expert, lora, config), dtype)


def named(pack: Pack) -> dict[str, Any]:
    """The leaves of a pack, or of any tree in its place, by name."""
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(pack)}


def from_named(shape: Pack, tensors: dict[str, Any]) -> Pack:
    """The pack of the form of `shape` whose leaves are `tensors`, by name."""
    return jax.tree.unflatten(jax.tree.structure(shape), [tensors[name] for name in named(shape)])


def tensor_problems(
    wanted: dict[str, tuple[np.dtype, tuple[int, ...]]], tensors: dict[str, np.ndarray], *, most: int = 5
) -> list[str]:
    """One line per tensor that is missing, unexpected, of another shape or dtype, or holds NaN or infinities."""
    lines = [f"tensor {name} is missing" for name in wanted if name not in tensors]
    lines += [f"tensor {name} belongs to no part" for name in tensors if name not in wanted]
    for name, (dtype, shape) in wanted.items():
        array = tensors.get(name)
        if array is None:
            continue
        if array.shape != shape or array.dtype != dtype:
            have, want = f"{array.dtype}{list(array.shape)}", f"{dtype}{list(shape)}"
            lines.append(f"tensor {name} is {have}, the manifest announces {want}")
        elif not _finite(array):
            lines.append(f"tensor {name} holds NaN or infinite values")
    return lines[:most] + ([f"and {len(lines) - most} more"] if len(lines) > most else [])


def _finite(array: np.ndarray) -> bool:
    """Whether it holds neither NaN nor infinities; a sum tells at once, unless it overflows itself."""
    if array.dtype.kind in "iu":
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(array.sum())) or bool(np.isfinite(array).all())


def config_differences(trained: ModelConfig, other: ModelConfig, *, expert: bool) -> list[str]:
    """Why a pack trained on a base of one shape cannot run on another, whatever their weights; empty if it can."""
    names = ["n_layers", "tap", *(_EXPERT_SETTINGS if expert else ())]
    lines = [
        f"{name} is {getattr(other, name)}, the pack needs {getattr(trained, name)}"
        for name in names
        if getattr(trained, name) != getattr(other, name)
    ]
    shapes, theirs = map_shapes(trained), map_shapes(other)
    lines += [
        f"map {name} is {theirs[name]}, the pack needs {shapes[name]}"
        for name in shapes
        if shapes[name] != theirs[name]
    ]
    if expert and _rounded(trained) != _rounded(other):
        lines.append("its rotary frequencies or norm epsilon differ from those the expert was trained with")
    return lines


def _rounded(config: ModelConfig) -> tuple[str, ...]:
    """To the digits of the base's digest: GGUF and HF state the same frequencies in different forms."""
    return f"{config.rms_eps:.6e}", *(f"{freq:.4e}" for freq in config.inv_freq())


def _lora_part(lora: Lora) -> LoraPart | None:
    ranks = {
        (i, target): delta.a.shape[0]
        for i, layer in enumerate(lora.layers)
        for target in TARGETS
        if (delta := getattr(layer, target, None)) is not None
    }
    if not ranks:
        return None
    usual = collections.Counter(ranks.values()).most_common(1)[0][0]
    layers = tuple(sorted({i for i, _ in ranks}))
    targets = tuple(target for target in TARGETS if any(t == target for _, t in ranks))
    grid = {(i, target): ranks.get((i, target), 0) for i in layers for target in targets}
    return LoraPart(usual, targets, layers, {f"{i}.{t}": rank for (i, t), rank in grid.items() if rank != usual})


def _declared_lora(part: LoraPart, config: ModelConfig) -> Lora:
    shapes = map_shapes(config)

    def low_rank(layer: int, target: str) -> LowRank | None:
        rank, (n_out, n_in) = part.rank_of(layer, target), shapes[target]
        if not rank:
            return None
        return LowRank(
            a=param((rank, n_in), ("rank", None), fan_in),
            b=param((n_out, rank), (None, "rank"), zeros),
            scale=param((), (), ones, "float32"),
        )

    layers = []
    for i in range(config.n_layers):
        maps = {target: low_rank(i, target) for target in TARGETS}
        layers.append(LayerLora(**maps) if any(maps.values()) else None)
    return Lora(tuple(layers))


def _name(path: tuple[Any, ...]) -> str:
    words = [str(key.idx) if isinstance(key, jax.tree_util.SequenceKey) else key.name for key in path]
    return ".".join(words).replace("lora.layers.", "lora.", 1)
