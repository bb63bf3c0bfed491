"""Logits against transformers on the CPU, for models that transformers itself saved.

float32: within 1e-4 of the largest logit. bfloat16, against transformers' float32: 1.5% to 3.0% of it here (through two
layers of random weights; transformers' own bfloat16: 1.6% to 3.4%).
"""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import logits_of, no_packs, relative_error
from tiny_tokenizers import byte_level_core

from mbjax.core.base import head
from mbjax.core.cache import init_cache
from mbjax.core.decode import chunk_sizes, prefill
from mbjax.io.load import LoadedBase, load_base

reference_models = pytest.importorskip("reference_models", reason="needs torch and transformers")

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("default"),  # what torch and transformers warn of is not ours
]

VOCAB, N_TOKENS, N_STEPS = 416, 150, 4
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=list(reference_models.MODELS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(name, transformers' model, the directory it saved, tokens [1, T], transformers' logits [1, T, V])."""
    model = reference_models.random_model(request.param, VOCAB)
    directory = tmp_path_factory.mktemp(request.param)
    tokens = np.random.default_rng(1).integers(0, VOCAB, (1, N_TOKENS), dtype=np.int32)
    return request.param, model, save(model, directory), tokens, reference_models.logits_of(model, tokens)


def save(model, directory: Path, **options) -> Path:
    model.save_pretrained(directory, **options)
    byte_level_core().save(str(directory / "tokenizer.json"))
    return directory


def test_full_pass(pair, home: Path) -> None:
    _, _, directory, tokens, expected = pair
    base = load_base(directory)
    logits, _ = logits_of(base.params, tokens, base.config)
    assert relative_error(logits, expected) <= TOLERANCE


def test_sharded_files_give_the_same_base(pair, home: Path, tmp_path: Path) -> None:
    _, model, directory, tokens, expected = pair
    sharded = save(model, tmp_path / "sharded", max_shard_size="30KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1 and not (sharded / "model.safetensors").exists()
    base = load_base(sharded)
    logits, _ = logits_of(base.params, tokens, base.config)
    assert relative_error(logits, expected) <= TOLERANCE
    assert base.digest == load_base(directory).digest


def test_chunked_prefill_and_cached_decode(pair, home: Path) -> None:
    _, _, directory, tokens, expected = pair
    base = load_base(directory)
    for at, logits in incremental(base, tokens):
        assert relative_error(logits, expected[:, at]) <= TOLERANCE, f"position {at}"


def incremental(base: LoadedBase, tokens: np.ndarray):
    """(position, logits [1, V]) after each chunk of the prompt, the last one padded, then token by token."""
    n_prompt = tokens.shape[1] - N_STEPS
    sizes = chunk_sizes(n_prompt)
    assert len(sizes) > 1 and sum(sizes) > n_prompt
    cache, at = init_cache(base.config, 1, sum(sizes)), 0
    for size in [*sizes, *[1] * N_STEPS]:
        part = tokens[:, at : min(at + size, n_prompt) if at < n_prompt else at + 1]
        padded = jnp.asarray(np.pad(part, ((0, 0), (0, size - part.shape[1]))))
        n_valid = jnp.asarray([part.shape[1]], jnp.int32)
        h, cache = prefill(base.params, no_packs(1), cache, padded, n_valid, config=base.config)
        at += part.shape[1]
        yield at - 1, np.asarray(head(base.params, h, config=base.config))
    assert at == tokens.shape[1]


def relative_rms(actual: np.ndarray, expected: np.ndarray) -> float:
    """Over all logits: the largest single error of a random model is luck, and another one on every processor."""
    return float(np.sqrt(np.square(actual - expected).mean() / np.square(expected).mean()))


def test_bfloat16_errs_no_more_than_the_reference_in_bfloat16(pair, home: Path, record_property) -> None:
    name, _, directory, tokens, expected = pair
    base = load_base(directory, dtype="bfloat16")
    ours = relative_rms(logits_of(base.params, tokens, base.config)[0], expected)
    theirs = relative_rms(
        reference_models.logits_of(reference_models.read_model(directory, "bfloat16"), tokens), expected
    )
    record_property("bfloat16_error", {"mbjax": ours, "transformers": theirs})
    print(f"{name}: bfloat16 error {ours:.4f}, transformers' own {theirs:.4f}")
    assert 0 < ours <= theirs
