"""PEFT adapters become packs and back with the same values; what a pack cannot hold is refused by name."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tiny_packs import CONFIG, random_pack, same_trees

from mbjax.core.lora import map_shapes
from mbjax.core.pack import Pack
from mbjax.errors import InputError
from mbjax.io.peft import CONFIG as CONFIG_NAME
from mbjax.io.peft import TENSORS, export_peft, import_peft
from mbjax.io.safetensors_file import write_safetensors

PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "bias": "none"}
HARMLESS = {
    "lora_dropout": 0.1,
    "inference_mode": True,
    "task_type": "CAUSAL_LM",
    "peft_version": "1",
    "revision": None,
}
MODULES = {"q": "self_attn.q_proj", "down": "mlp.down_proj"}


def tensors(rank: int = 2, layers: range = range(CONFIG.n_layers), prefix: str = "model.") -> dict[str, np.ndarray]:
    rng, shapes, made = np.random.default_rng(3), map_shapes(CONFIG), {}
    for i in layers:
        for target, module in MODULES.items():
            n_out, n_in = shapes[target]
            stem = f"base_model.model.{prefix}layers.{i}.{module}"
            made[f"{stem}.lora_A.weight"] = rng.standard_normal((rank, n_in)).astype(np.float32)
            made[f"{stem}.lora_B.weight"] = rng.standard_normal((n_out, rank)).astype(np.float32)
    return made


def save(path: Path, settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Path:
    path.mkdir(exist_ok=True)
    (path / CONFIG_NAME).write_text(json.dumps(settings))
    with open(path / TENSORS, "wb") as file:
        write_safetensors(file, {name: (a.dtype, a.shape) for name, a in arrays.items()}, arrays.items())
    return path


def delta(pack: Pack, layer: int, target: str):
    assert pack.lora is not None and pack.lora.layers[layer] is not None
    return getattr(pack.lora.layers[layer], target)


@pytest.mark.parametrize("prefix", ["model.", ""])
def test_values_pass_unchanged(tmp_path: Path, prefix: str) -> None:
    arrays = tensors(prefix=prefix)
    note = {"base_model_name_or_path": "someone/tiny"}
    adapter = import_peft(save(tmp_path / "a", PLAIN | HARMLESS | note, arrays), CONFIG)
    assert adapter.base_model == "someone/tiny"
    found = delta(adapter.pack, 3, "down")
    stem = f"base_model.model.{prefix}layers.3.mlp.down_proj"
    assert np.array_equal(found.a, arrays[f"{stem}.lora_A.weight"])
    assert np.array_equal(found.b, arrays[f"{stem}.lora_B.weight"])
    assert found.scale == 3.0 and delta(adapter.pack, 0, "k") is None


def test_half_precision_is_widened(tmp_path: Path) -> None:
    arrays = {name: array.astype(ml_dtypes.bfloat16) for name, array in tensors().items()}
    found = delta(import_peft(save(tmp_path / "a", PLAIN, arrays), CONFIG).pack, 0, "q")
    assert found.a.dtype == np.float32
    assert np.array_equal(
        found.a, arrays["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].astype("f4")
    )


def test_patterns_and_rank_stabilised_scales(tmp_path: Path) -> None:
    arrays = tensors() | {k: v for k, v in tensors(rank=4).items() if "layers.1.self_attn" in k}
    settings = PLAIN | {
        "rank_pattern": {"layers.1.self_attn.q_proj": 4},
        "alpha_pattern": {"^model.layers.2.mlp.down_proj": 8, "down_proj": 10, "^layers.3.self_attn.q_proj": 99},
        "use_rslora": True,
    }
    pack = import_peft(save(tmp_path / "a", settings, arrays), CONFIG).pack
    scales = {(i, t): float(delta(pack, i, t).scale) for i in range(4) for t in MODULES}
    assert scales[1, "q"] == pytest.approx(6 / 4**0.5) and scales[2, "down"] == pytest.approx(8 / 2**0.5)
    assert scales[3, "down"] == pytest.approx(10 / 2**0.5) and scales[3, "q"] == pytest.approx(6 / 2**0.5)
    assert delta(pack, 1, "q").a.shape == (4, 16)


def test_layers_to_transform(tmp_path: Path) -> None:
    settings = PLAIN | {"layers_to_transform": [2, 3]}
    pack = import_peft(save(tmp_path / "a", settings, tensors(layers=range(2, 4))), CONFIG).pack
    assert pack.lora is not None and pack.lora.layers[:2] == (None, None) and delta(pack, 2, "q") is not None


STEM = "base_model.model.model.layers.0.self_attn.q_proj"
REFUSED = [
    ({"use_dora": True}, {}, "DoRA"),
    ({"bias": "all"}, {}, "bias is 'all'"),
    ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
    ({"trainable_token_indices": [1]}, {}, "trainable_token_indices"),
    ({"layer_replication": [[0, 2]]}, {}, "layer_replication"),
    ({"something_new": {"x": 1}}, {}, "something_new"),
    ({"fan_in_fan_out": True}, {}, "fan_in_fan_out"),
    ({"init_lora_weights": "pissa"}, {}, "init_lora_weights is 'pissa'"),
    ({"peft_type": "IA3"}, {}, "peft_type is 'IA3'"),
    ({"r": 0}, {}, "r must be a whole number"),
    ({"lora_alpha": "16"}, {}, "lora_alpha must be a number"),
    ({"r": 3}, {}, "the base and adapter_config.json ask for [3, "),
    ({"alpha_pattern": {"(a+)+$": 1}}, {}, "is an expression"),
    ({"target_modules": ["q_proj", "down_proj", "embed_tokens"]}, {}, "cannot hold: embed_tokens"),
    ({"target_modules": ["q_proj", "down_proj", "v_proj"]}, {}, "not there: model.layers.0.self_attn.v_proj"),
    ({"target_modules": ["q_proj"]}, {}, "does not name the modules of these tensors: model.layers.0.mlp.down_proj"),
    ({"layers_to_transform": 1}, {}, "does not name the modules"),
    (
        {},
        {"base_model.model.model.embed_tokens.lora_embedding_A": (2, 61)},
        "no place for: base_model.model.model.embed",
    ),
    ({}, {f"{STEM}.lora_magnitude_vector": (16,)}, "lora_magnitude_vector"),
    ({}, {STEM.replace("layers.0", "layers.9") + ".lora_A.weight": (2, 16)}, "no place for"),
    (
        {},
        {STEM.replace("q_proj", "k_proj") + ".lora_A.weight": (2, 16)},
        "missing: model.layers.0.self_attn.k_proj.lora_B",
    ),
    ({}, {f"{STEM}.lora_A.weight": (2, 17)}, "has shape [2, 17]"),
]


@pytest.mark.parametrize(("change", "more", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_what_a_pack_cannot_hold_is_refused(tmp_path: Path, change: dict, more: dict, reason: str) -> None:
    arrays = tensors() | {name: np.ones(shape, np.float32) for name, shape in more.items()}
    with pytest.raises(InputError) as caught:
        import_peft(save(tmp_path / "a", PLAIN | change, arrays), CONFIG)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_directories_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a", PLAIN, tensors())
    data = (path / TENSORS).read_bytes()
    for damaged in (b"", data[:-1], data + b"x", b"\xff" * 8 + data[8:]):
        (path / TENSORS).write_bytes(damaged)
        with pytest.raises(InputError, match="safetensors"):
            import_peft(path, CONFIG)
    (path / TENSORS).rename(path / "adapter_model.bin")
    with pytest.raises(InputError, match="pickle"):
        import_peft(path, CONFIG)
    with pytest.raises(InputError, match="no such directory"):
        import_peft(tmp_path / "none", CONFIG)
    sick = tensors() | {f"{STEM}.lora_B.weight": np.full((16, 2), np.inf, np.float32)}
    with pytest.raises(InputError, match="NaN or infinite"):
        import_peft(save(tmp_path / "b", PLAIN, sick), CONFIG)


def test_export_and_import_give_the_same_pack(tmp_path: Path) -> None:
    plain = random_pack(expert=False)
    settings = PLAIN | {"rank_pattern": {"layers.1.self_attn.q_proj": 4}, "alpha_pattern": {"2.mlp.down_proj": 1}}
    arrays = tensors() | {k: v for k, v in tensors(rank=4).items() if "layers.1.self_attn" in k}
    uneven = import_peft(save(tmp_path / "a", settings, arrays), CONFIG).pack
    for i, pack in enumerate((plain, uneven)):
        export_peft(tmp_path / f"out{i}", pack, "tiny")
        again = import_peft(tmp_path / f"out{i}", CONFIG)
        assert again.base_model == "tiny"
        assert same_trees(again.pack, pack)


def test_export_refuses_experts_and_taken_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expert part"):
        export_peft(tmp_path / "out", random_pack(), "tiny")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(InputError, match="exists already"):
        export_peft(tmp_path / "out", random_pack(expert=False), "tiny")
