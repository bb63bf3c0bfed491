"""Small bases written to disk the way other programs write them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tiny_tokenizers import byte_level_core, gguf_metadata

from mbjax.core.config import ModelConfig
from mbjax.io.names import hf_params
from mbjax.io.safetensors_file import write_safetensors

CONFIG = ModelConfig(
    n_layers=2, d_model=64, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=96, vocab_size=416, max_context=512
)
GGUF_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "norm": "output_norm",
}


def random_weights(config: ModelConfig = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """float32 values by HF name that bfloat16 holds exactly."""
    rng = np.random.default_rng(seed)
    params = hf_params(config)
    return {name: rng.integers(-64, 64, p.shape).astype(np.float32) / 64 for name, p in params.items()}


def hf_config(config: ModelConfig = CONFIG, architecture: str = "LlamaForCausalLM") -> dict[str, Any]:
    """config.json as transformers 4 writes it."""
    return {
        "architectures": [architecture],
        "hidden_act": "silu",
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "max_position_embeddings": config.max_context,
        "num_attention_heads": config.n_heads,
        "num_hidden_layers": config.n_layers,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": config.tied_head,
        "vocab_size": config.vocab_size,
    }


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        specs = {name: (array.dtype, array.shape) for name, array in tensors.items()}
        write_safetensors(file, specs, tensors.items())


def write_hf(
    directory: Path, weights: dict[str, np.ndarray], raw: dict[str, Any] | None = None, shards: int = 1
) -> Path:
    """An HF directory with a byte-level tokenizer; its weights in one file or several."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(raw or hf_config()))
    byte_level_core().save(str(directory / "tokenizer.json"))
    if shards == 1:
        write_tensors(directory / "model.safetensors", weights)
        return directory
    names = sorted(weights)
    weight_map = {name: f"model-{i * shards // len(names) + 1:05}.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        write_tensors(directory / file, {name: weights[name] for name in names if weight_map[name] == file})
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_gguf(
    path: Path,
    weights: dict[str, np.ndarray],
    config: ModelConfig = CONFIG,
    *,
    architecture: str = "llama",
    matrices: str = "F32",
    extra: dict[str, Any] | None = None,
    factors: tuple[float, ...] = (),
) -> Path:
    """A GGUF file through the `gguf` package, `matrices` its quantisation type; `extra` adds or replaces metadata."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, architecture)
    for key, value in (_metadata(config, architecture) | (extra or {})).items():
        _add(writer, key, value)
    for name, array in weights.items():
        array = _permuted(name, array, config) if architecture == "llama" else array
        kind = GGMLQuantizationType[matrices if array.ndim > 1 else "F32"]
        writer.add_tensor(gguf_name(name), quantize(array, kind), raw_dtype=kind)
    if factors:
        writer.add_tensor("rope_freqs.weight", np.asarray(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    part, kind = name.removeprefix("model.").rsplit(".", 1)
    if part.startswith("layers."):
        _, layer, part = part.split(".", 2)
        return f"blk.{layer}.{GGUF_PARTS[part]}.{kind}"
    return f"{GGUF_PARTS[part]}.{kind}"


def _metadata(config: ModelConfig, architecture: str) -> dict[str, Any]:
    keys = {
        "block_count": config.n_layers,
        "context_length": config.max_context,
        "embedding_length": config.d_model,
        "feed_forward_length": config.d_ff,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.n_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_eps,
        "rope.freq_base": config.rope_theta,
    }
    return {f"{architecture}.{key}": value for key, value in keys.items()} | gguf_metadata(byte_level_core())


def _add(writer: Any, key: str, value: Any) -> None:
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)


def _permuted(name: str, array: np.ndarray, config: ModelConfig) -> np.ndarray:
    """What llama.cpp's convert_hf_to_gguf.py does to the rotary rows of the Llama architecture."""
    heads = {"q_proj": config.n_heads, "k_proj": config.n_kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return array
    out, inner = array.shape
    return array.reshape(heads, 2, out // heads // 2, inner).swapaxes(1, 2).reshape(out, inner)
