"""config.json as transformers 4 and 5 write it, weights in one file or many, and what is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from tiny_bases import CONFIG, hf_config, random_weights, write_hf, write_tensors

from mbjax.core.config import ModelConfig, RopeScaling
from mbjax.errors import InputError
from mbjax.io.hf import read_hf_config, read_hf_weights

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def config_of(tmp_path, changes: dict, architecture: str = "LlamaForCausalLM", without: tuple = ()) -> ModelConfig:
    raw = hf_config(architecture=architecture) | changes
    (tmp_path / "config.json").write_text(json.dumps({key: raw[key] for key in raw if key not in without}))
    return read_hf_config(tmp_path)


def test_the_four_families(tmp_path):
    assert config_of(tmp_path, {}) == CONFIG
    assert config_of(tmp_path, {}, "MistralForCausalLM") == CONFIG
    qwen2 = config_of(tmp_path, {"use_sliding_window": False, "sliding_window": 32}, "Qwen2ForCausalLM")
    assert qwen2.qkv_bias and not qwen2.qk_norm
    qwen3 = config_of(tmp_path, {"head_dim": None, "attention_bias": False}, "Qwen3ForCausalLM")
    assert qwen3.qk_norm and not qwen3.qkv_bias and qwen3.head_dim == 128
    assert config_of(tmp_path, {}, without=("head_dim", "rope_theta", "rope_scaling")) == CONFIG
    assert config_of(tmp_path, {}, without=("num_key_value_heads",)).n_kv_heads == CONFIG.n_heads
    assert not config_of(tmp_path, {}, without=("tie_word_embeddings",)).tied_head


def test_rope_of_transformers_4_and_5(tmp_path):
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 64)
    four = config_of(tmp_path, {"rope_theta": 5e5, "rope_scaling": LLAMA3})
    five = config_of(
        tmp_path, {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}, without=("rope_theta", "rope_scaling")
    )
    assert four == five and four.rope_scaling == scaling and four.rope_theta == 5e5
    old = config_of(tmp_path, {"rope_scaling": {"type": "linear", "factor": 2.0}})
    assert old.rope_scaling == RopeScaling("linear", factor=2.0)
    assert config_of(tmp_path, {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}).rope_theta == 7.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture 'GPT2LMHeadModel'; known: LlamaForCausalLM"),
        ({"architectures": None}, "architecture"),
        ({"architectures": [["a\nb"]]}, "architecture"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope type 'yarn'"),
        ({"rope_scaling": {"rope_type": ["x"]}}, "rope type"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is None"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor is 0"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "must be below"),
        ({"rope_scaling": 3}, "rope_scaling of another form"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "rope_parameters of another form"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"use_sliding_window": True, "sliding_window": 128}, "sliding_window of 128"),
        ({"hidden_size": "64"}, "hidden_size is 64"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers is"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"head_dim": 15}, "odd"),
        ({"num_attention_heads": 1000, "head_dim": None}, "head_dim is 0"),
        ({"rms_norm_eps": -1e-5}, "rms_norm_eps"),
        ({"rope_theta": 1e300}, "rope_theta"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, changes, reason):
    with pytest.raises(InputError, match=reason) as caught:
        config_of(tmp_path, changes)
    assert "config.json" in str(caught.value) and "\n" not in str(caught.value)


def test_mistral_with_a_window_is_refused(tmp_path):
    assert config_of(tmp_path, {"sliding_window": 512}, "MistralForCausalLM") == CONFIG
    with pytest.raises(InputError, match="sliding_window of 256 within 512"):
        config_of(tmp_path, {"sliding_window": 256}, "MistralForCausalLM")
    with pytest.raises(InputError, match="sliding_window of 4096"):  # what transformers assumes
        config_of(tmp_path, {"max_position_embeddings": 8192}, "MistralForCausalLM", without=("sliding_window",))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1, "a": 2}', "[" * 50_000, '{"a": 1' + "0" * 5000 + "}", "\0"])
def test_malformed_json_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match="config.json"):
        read_hf_config(tmp_path)
    with pytest.raises(InputError, match="config.json: cannot be read"):
        read_hf_config(tmp_path / "nowhere")


def test_one_file_and_shards_give_the_same_weights(tmp_path):
    weights = random_weights()
    whole = read_hf_weights(write_hf(tmp_path / "whole", weights))
    parts = read_hf_weights(write_hf(tmp_path / "parts", weights, shards=3))
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) == 3
    assert whole.keys() == parts.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(whole[name], array)
        np.testing.assert_array_equal(parts[name], array)


def test_missing_and_wrong_weight_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="no model.safetensors"):
        read_hf_weights(tmp_path)
    directory = write_hf(tmp_path / "parts", random_weights(), shards=2)
    (directory / "model-00002.safetensors").rename(directory / "other.safetensors")
    with pytest.raises(InputError, match="model-00002.safetensors: cannot be read"):
        read_hf_weights(directory)
    write_tensors(directory / "model-00002.safetensors", {"x": np.zeros(1, np.float32)})
    with pytest.raises(InputError, match="no shard holds: .*model.norm.weight"):
        read_hf_weights(directory)
    (directory / "model-00002.safetensors").write_bytes((directory / "model-00001.safetensors").read_bytes())
    with pytest.raises(InputError, match="is in another shard too"):
        read_hf_weights(directory)
    write_tensors(directory / "model.safetensors", {"x": np.zeros(1, np.int8)})
    with pytest.raises(InputError, match="tensor x is int8"):
        read_hf_weights(directory)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "a\\b.safetensors", 3, "model.bin", "a\n.safetensors"]
)
def test_an_index_cannot_lead_out_of_the_directory(tmp_path, file):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": file}}))
    with pytest.raises(InputError, match="not in a file beside the index"):
        read_hf_weights(tmp_path)


def test_an_index_without_files_is_refused(tmp_path):
    for content in ({}, {"weight_map": []}, {"weight_map": {}}):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
        with pytest.raises(InputError, match="no weight_map"):
            read_hf_weights(tmp_path)


def test_half_precision_stays_as_stored(tmp_path):
    weights = {name: array.astype(ml_dtypes.bfloat16) for name, array in random_weights().items()}
    read = read_hf_weights(write_hf(tmp_path / "half", weights))
    assert {array.dtype.name for array in read.values()} == {"bfloat16"}
