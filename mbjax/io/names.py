"""What each tensor of a base is called: in Hugging Face files, in GGUF files and in the tree `Base`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from mbjax.core.base import Base, declare
from mbjax.core.config import ModelConfig
from mbjax.core.param import is_param, mismatches
from mbjax.errors import InputError

_PARTS = {  # part of the tree -> (HF, GGUF)
    "embed": ("model.embed_tokens.weight", "token_embd.weight"),
    "norm": ("model.norm.weight", "output_norm.weight"),
    "head": ("lm_head.weight", "output.weight"),
}
_LAYER_PARTS = {
    "attn.norm": ("input_layernorm.weight", "attn_norm.weight"),
    "attn.q": ("self_attn.q_proj.weight", "attn_q.weight"),
    "attn.k": ("self_attn.k_proj.weight", "attn_k.weight"),
    "attn.v": ("self_attn.v_proj.weight", "attn_v.weight"),
    "attn.o": ("self_attn.o_proj.weight", "attn_output.weight"),
    "attn.q_bias": ("self_attn.q_proj.bias", "attn_q.bias"),
    "attn.k_bias": ("self_attn.k_proj.bias", "attn_k.bias"),
    "attn.v_bias": ("self_attn.v_proj.bias", "attn_v.bias"),
    "attn.q_norm": ("self_attn.q_norm.weight", "attn_q_norm.weight"),
    "attn.k_norm": ("self_attn.k_norm.weight", "attn_k_norm.weight"),
    "mlp.norm": ("post_attention_layernorm.weight", "ffn_norm.weight"),
    "mlp.gate": ("mlp.gate_proj.weight", "ffn_gate.weight"),
    "mlp.up": ("mlp.up_proj.weight", "ffn_up.weight"),
    "mlp.down": ("mlp.down_proj.weight", "ffn_down.weight"),
}
_GGUF_TO_HF = {gguf: hf for hf, gguf in _PARTS.values()}
_GGUF_LAYER_TO_HF = {gguf: hf for hf, gguf in _LAYER_PARTS.values()}
_TREE_LAYER = re.compile(r"\.layers\[(\d+)\]\.(.+)")
_GGUF_LAYER = re.compile(r"blk\.(\d{1,6})\.(.+)")
_COMPUTED = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")  # old exports keep this buffer


def hf_name(path: str) -> str:
    """The HF name of the parameter at a key path of `Base`, e.g. `.layers[3].attn.q`."""
    match = _TREE_LAYER.fullmatch(path)
    if match:
        return f"model.layers.{match[1]}.{_LAYER_PARTS[match[2]][0]}"
    return _PARTS[path.removeprefix(".")][0]


def gguf_to_hf(name: str) -> str:
    """The HF name of a GGUF tensor; a name that is not of the Llama family comes back as it is."""
    match = _GGUF_LAYER.fullmatch(name)
    if match and match[2] in _GGUF_LAYER_TO_HF:
        return f"model.layers.{int(match[1])}.{_GGUF_LAYER_TO_HF[match[2]]}"
    return _GGUF_TO_HF.get(name, name)


def hf_params(config: ModelConfig) -> dict[str, Any]:
    """HF name -> declared `Param` of every parameter, sorted by name."""
    leaves = jax.tree.leaves_with_path(declare(config), is_leaf=is_param)
    return dict(sorted((hf_name(jax.tree_util.keystr(path)), leaf) for path, leaf in leaves))


def base_tree(config: ModelConfig, tensors: Mapping[str, Any]) -> Base:
    """The tree `Base` with the entries of `tensors`, by HF name, as leaves; None where one is missing."""
    leaves, treedef = jax.tree.flatten_with_path(declare(config), is_leaf=is_param)
    return jax.tree.unflatten(treedef, [tensors.get(hf_name(jax.tree_util.keystr(path))) for path, _ in leaves])


def check_tensors(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Compare tensors found (HF name -> shape) with those declared for `config`.

    Raises InputError in one line with the key path of every parameter that is missing or of another shape, and the
    name of every tensor that has no place.
    """
    if config.n_layers > len(shapes):  # before a tree of as many layers as a file claims is built
        raise InputError(f"{path}: announces {config.n_layers} layers but holds {len(shapes)} tensors")
    found = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    lines = mismatches(declare(config), base_tree(config, found))
    expected = hf_params(config)
    lines += [f"{name}: no such parameter" for name in shapes if name not in expected and not _spare(name, config)]
    if lines:
        raise InputError(f"{path}: weights do not fit their configuration: {'; '.join(lines)}")


def _spare(name: str, config: ModelConfig) -> bool:
    return (config.tied_head and name == "lm_head.weight") or _COMPUTED.fullmatch(name) is not None
