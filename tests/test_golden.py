"""Parity with the reference implementations, from fixtures that infer/make_golden.py made of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from make_golden import CHAT, ids_digest
from mixed_text import mixed_lines
from tiny import logits_of, relative_error

from mbjax.core.cache import init_cache
from mbjax.core.config import ModelConfig
from mbjax.io.hf import read_hf_config, read_hf_weights
from mbjax.io.names import base_tree, check_tensors

GOLDEN = Path(__file__).parent / "golden"
TINY = sorted(path.parent.name for path in GOLDEN.glob("*/expected.npz"))


def test_every_family_has_a_fixture() -> None:
    names = {json.loads((GOLDEN / name / "config.json").read_text())["architectures"][0] for name in TINY}
    assert names == {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}


@pytest.fixture(params=TINY)
def tiny_model(request: pytest.FixtureRequest):
    """(config, float32 parameters, tokens [B, T], transformers' logits [B, T, V])."""
    directory = GOLDEN / request.param
    config, weights = read_hf_config(directory), read_hf_weights(directory)
    check_tensors(config, {name: array.shape for name, array in weights.items()}, directory)
    params = base_tree(config, {name: array.astype(np.float32) for name, array in weights.items()})
    expected = np.load(directory / "expected.npz")
    return config, params, expected["tokens"], expected["logits"]


def test_tiny_models_have_the_references_logits(tiny_model) -> None:
    config, params, tokens, expected = tiny_model
    full, _ = logits_of(params, tokens, config)
    assert relative_error(full, expected) <= 1e-4
    chunk, cache = logits_of(params, tokens[:, :-2], config, init_cache(config, len(tokens), 32))
    assert relative_error(chunk, expected[:, :-2]) <= 1e-4
    for at in (-2, -1):
        step, cache = logits_of(params, tokens[:, [at]], config, cache)
        assert relative_error(step, expected[:, [at]]) <= 1e-4


@pytest.fixture(scope="module")
def real() -> dict:
    return json.loads((GOLDEN / "smollm2-135m.json").read_text())


@pytest.mark.slow
def test_the_default_base_has_the_references_token_ids(smollm2, real: dict) -> None:
    tokenizer = smollm2.tokenizer
    assert tokenizer.template.render(CHAT) == real["prompts"][0]["text"]
    for prompt in real["prompts"]:
        assert tokenizer.encode(prompt["text"], add_bos=False) == prompt["ids"]
    lines = mixed_lines()
    assert len(lines) == real["mixed_lines"]
    ids = [tokenizer.encode(line, add_bos=False, special=False) for line in lines]
    assert ids_digest(ids) == real["mixed_ids_sha256"]


@pytest.mark.slow
def test_the_default_base_has_the_references_logits(smollm2, real: dict) -> None:
    config: ModelConfig = smollm2.config
    longest = max(len(prompt["ids"]) for prompt in real["prompts"])
    tokens = np.asarray([np.pad(prompt["ids"], (0, longest - len(prompt["ids"]))) for prompt in real["prompts"]])
    logits, _ = logits_of(smollm2.params, tokens.astype(np.int32), config)
    for lane, prompt in enumerate(real["prompts"]):
        for position in prompt["positions"]:
            actual, expected = logits[lane, position["at"]], np.asarray(position["logits"], np.float32)
            assert relative_error(actual[position["tokens"]], expected) <= 1e-4
            assert int(actual.argmax()) == position["tokens"][0] or expected[0] - expected[1] < 1e-3
            others = np.delete(actual, position["tokens"])
            assert others.max() <= expected[-1] + 1e-3, "a token that the reference ranks lower came out on top"
