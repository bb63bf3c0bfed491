"""Tiny random models of every family read here, made by transformers: what the forward pass is compared with."""

from pathlib import Path
from typing import Any

import torch
import transformers

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_untied": ("Llama", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
    "llama3_rope": ("Llama", {"rope_parameters": _LLAMA3}),
    "llama_linear_rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": None, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", {"rms_norm_eps": 1e-6}),
    "qwen3": ("Qwen3", {"rms_norm_eps": 1e-6, "head_dim": 12}),
}


def random_model(name: str, vocab_size: int) -> Any:
    """The model of that name in float32; all its parameters random, the biases and norms among them, so that none of
    them could be left out unnoticed. The same each time."""
    family, changes = MODELS[name]
    config_class = getattr(transformers, f"{family}Config")
    config = config_class(**(_SHAPE | changes | {"vocab_size": vocab_size, "attn_implementation": "eager"}))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim > 1:
                value.copy_(noise * value.shape[-1] ** -0.5)
            else:
                value.copy_((0 if part.endswith("bias") else 1) + 0.3 * noise)
    return model


def read_model(directory: Path, dtype: str) -> Any:
    """The model that a directory holds. Rotary frequencies stay exact, which casting a model would round as well."""
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()


def logits_of(model: Any, tokens: Any) -> Any:
    """Float32 logits [B, T, V] of token ids [B, T] as a numpy array."""
    with torch.no_grad():
        return model(torch.as_tensor(tokens, dtype=torch.long)).logits.float().numpy()
