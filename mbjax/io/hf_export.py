"""A base as a Hugging Face directory, which `load_base` and transformers both load."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mbjax.core.base import Base
from mbjax.core.config import ModelConfig
from mbjax.errors import InputError
from mbjax.io.files import new_directory
from mbjax.io.names import hf_name
from mbjax.io.safetensors_file import write_safetensors

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def llama_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` of a plain Llama of this shape. Raises InputError for a shape that Llama has no words for."""
    if config.qkv_bias or config.qk_norm or config.rope_scaling is not None:
        raise InputError("only plain Llama shapes are exported: no qkv_bias, no qk_norm, no scaled rope")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.rms_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tied_head,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def write_weights(path: Path, params: Base) -> None:
    """`model.safetensors` with the parameters under their HF names, in the dtype they have."""
    leaves = jax.tree.leaves_with_path(params)
    tensors = {hf_name(jax.tree_util.keystr(where)): np.asarray(leaf) for where, leaf in leaves}
    with path.open("wb") as file:
        specs = {name: (array.dtype, array.shape) for name, array in tensors.items()}
        write_safetensors(file, specs, tensors.items(), {"format": "pt"})


def write_hf(directory: Path, params: Base, config: ModelConfig, tokenizer: Path) -> None:
    """Writes config.json, generation_config.json, model.safetensors and the tokenizer's files; all or nothing.

    tokenizer: a folder that `Tokenizer.from_hf` reads. What lay at `directory` is replaced. Raises InputError for a
    shape or a tokenizer that cannot be written so, FailureError where the system refuses.
    """
    from mbjax.io.tokenizer import Tokenizer

    known = Tokenizer.from_hf(tokenizer)
    if known.vocab_size > config.vocab_size:
        raise InputError(f"{tokenizer}: holds {known.vocab_size} tokens but the base's table {config.vocab_size}")
    ids: dict[str, Any] = {"bos_token_id": known.bos_id, "eos_token_id": sorted(known.eos_ids) or None}
    raw = llama_config(config) | {"torch_dtype": str(params.embed.dtype)} | ids
    with new_directory(directory) as folder:
        (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
        (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
        write_weights(folder / "model.safetensors", params)
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, folder / name)
