"""Adapters made by peft itself: imported, their logits are peft's; exported again, peft loads them with equal logits."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import relative_error
from tiny_packs import about
from tiny_tokenizers import byte_level_core

from mbjax.core.forward import forward
from mbjax.core.pack import Pack
from mbjax.io.load import LoadedBase, load_base
from mbjax.io.pack_dir import write_pack
from mbjax.io.pack_load import binding, load_pack
from mbjax.io.peft import export_peft, import_peft

reference_models = pytest.importorskip("reference_models", reason="needs torch and transformers")
peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("default"),  # what torch and transformers warn of is not ours
]

VOCAB, N_TOKENS = 416, 40
TOLERANCE = 1e-4
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "all_maps": {"r": 8, "lora_alpha": 16, "target_modules": ALL},
    "all_linear": {"r": 4, "lora_alpha": 4, "target_modules": "all-linear"},
    "expression": {"r": 4, "lora_alpha": 4, "target_modules": r".*\.1\.self_attn\.(q|v)_proj"},
    "one_layer": {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "excluded": {"r": 2, "lora_alpha": 2, "target_modules": ALL, "exclude_modules": ["model.layers.0.mlp.up_proj"]},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2, "down_proj": 6},
        "alpha_pattern": {"v_proj": 3, "layers.1.mlp.down_proj": 12},
    },
    "rank_stabilised": {
        "r": 9,
        "lora_alpha": 5,
        "target_modules": ALL,
        "use_rslora": True,
        "rank_pattern": {"k_proj": 4},
    },
}


@pytest.fixture(scope="module", params=list(ADAPTERS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(directory of the base, directory of the adapter, tokens, the adapted model's logits)."""
    import torch

    directory = tmp_path_factory.mktemp(request.param)
    save_base(directory / "base")
    config = peft.LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[request.param])
    model = peft.get_peft_model(reference_models.random_model("llama", VOCAB), config)
    torch.manual_seed(5)
    for name, value in model.named_parameters():
        if "lora_" in name:  # B starts at zero, which would test nothing
            torch.nn.init.normal_(value, std=0.3)
    model.save_pretrained(directory / "adapter")
    tokens = np.random.default_rng(1).integers(0, VOCAB, (2, N_TOKENS), dtype=np.int32)
    return directory / "base", directory / "adapter", tokens, reference_models.logits_of(model, tokens)


def save_base(directory: Path) -> None:
    reference_models.random_model("llama", VOCAB).save_pretrained(directory)
    byte_level_core().save(str(directory / "tokenizer.json"))


def logits_with(base: LoadedBase, pack: Pack, tokens: np.ndarray, gate: float = 1.0) -> np.ndarray:
    gates = jnp.full((*tokens.shape, 1), gate, jnp.float32)
    return np.asarray(forward(base.params, (pack,), gates, jnp.asarray(tokens), config=base.config)[0])


def test_imported_logits_are_pefts(made, home: Path, tmp_path: Path) -> None:
    base_path, adapter, tokens, expected = made
    base = load_base(base_path)
    pack = import_peft(adapter, base.config).pack
    assert relative_error(logits_with(base, pack, tokens), expected) <= TOLERANCE
    assert relative_error(logits_with(base, pack, tokens, gate=0.0), expected) > 100 * TOLERANCE
    write_pack(tmp_path / "pack", pack, about(base=binding(base)), card="# Imported\n")
    stored = load_pack(tmp_path / "pack", base)
    assert relative_error(logits_with(base, stored.params, tokens), expected) <= TOLERANCE


def test_exported_again_it_loads_in_peft(made, home: Path, tmp_path: Path) -> None:
    base_path, adapter, tokens, expected = made
    export_peft(tmp_path / "out", import_peft(adapter, load_base(base_path).config).pack, "tiny")
    plain = reference_models.random_model("llama", VOCAB)
    model = peft.PeftModel.from_pretrained(plain, tmp_path / "out")
    assert relative_error(reference_models.logits_of(model, tokens), expected) <= TOLERANCE
