"""P8: cached, incremental decoding equals the full pass. Row invariance: a lane's bits are its own."""

from functools import cache as remember

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIGS, PLAIN, logits_of, no_packs, random_base, random_tokens, relative_error

from mbjax.core.base import head
from mbjax.core.cache import Cache, init_cache
from mbjax.core.config import ModelConfig
from mbjax.core.decode import chunk_sizes, prefill

CAPACITY = 320  # more than one block of the attention loop


@remember
def base_of(name: str, dtype: str = "float32"):
    return random_base(CONFIGS[name], dtype)


@pytest.fixture(params=["plain", "odd"])
def model(request: pytest.FixtureRequest):
    return base_of(request.param), CONFIGS[request.param]


@remember
def step_of(config: ModelConfig):
    """(params, cache, tokens [B, T], n_valid [B]) -> the last valid tokens' logits [B, V], cache."""

    def step(params, cache, tokens, n_valid):
        h, cache = prefill(params, no_packs(len(tokens)), cache, tokens, n_valid, config=config)
        return head(params, h, config=config), cache

    return jax.jit(step)


def take_in(params, config: ModelConfig, rows: list[np.ndarray], size: int, steps: int) -> np.ndarray:
    """Prefills rows of any lengths in one padded chunk of `size`, then feeds 7, 8, 9, ...: logits [steps + 1, B, V]."""
    tokens = np.zeros((len(rows), size), np.int32)
    for lane, row in enumerate(rows):
        tokens[lane, : len(row)] = row
    lengths = np.asarray([len(row) for row in rows], np.int32)
    step = step_of(config)
    logits, cache = step(params, init_cache(config, len(rows), CAPACITY), jnp.asarray(tokens), jnp.asarray(lengths))
    seen = [np.asarray(logits)]
    for i in range(steps):
        fed = jnp.full((len(rows), 1), 7 + i, jnp.int32)
        logits, cache = step(params, cache, fed, jnp.ones(len(rows), jnp.int32))
        seen.append(np.asarray(logits))
    return np.stack(seen)


def test_one_token_at_a_time_equals_the_full_pass(model) -> None:
    params, config = model
    tokens = random_tokens(config, 3, 24)
    full, nothing = logits_of(params, tokens, config)
    assert nothing is None
    first, cache = logits_of(params, tokens[:, :10], config, init_cache(config, 3, 32))
    parts = [first]
    for t in range(10, 24):
        logits, cache = logits_of(params, tokens[:, t : t + 1], config, cache)
        parts.append(logits)
    assert relative_error(np.concatenate(parts, axis=1), full) <= 1e-4
    assert np.array_equal(np.asarray(cache.length), [24, 24, 24])


def test_padded_chunks_equal_the_full_pass(model) -> None:
    params, config = model
    n_tokens, buckets = 293, (8, 32, 128)
    tokens = random_tokens(config, 1, n_tokens)
    full, _ = logits_of(params, tokens, config)
    sizes = chunk_sizes(n_tokens, buckets)
    assert len(set(sizes)) > 1 and sum(sizes) > n_tokens, "the lengths are to have several sizes, and padding"
    cache, at = init_cache(config, 1, sum(sizes)), 0
    for size in sizes:
        part = tokens[:, at : at + size]
        padded = np.pad(part, ((0, 0), (0, size - part.shape[1])), constant_values=5)
        n_valid = jnp.asarray([part.shape[1]], jnp.int32)
        logits, cache = step_of(config)(params, cache, jnp.asarray(padded), n_valid)
        at += part.shape[1]
        assert np.abs(np.asarray(logits) - full[:, at - 1]).max() <= 1e-4 * np.abs(full).max()
    assert int(cache.length[0]) == n_tokens


def test_lanes_of_unequal_length_equal_their_own_full_pass(model) -> None:
    params, config = model
    rows = [random_tokens(config, n, seed=n) for n in (3, 17, 32, 30)]
    cached = take_in(params, config, rows, 32, steps=3)
    for lane, row in enumerate(rows):
        tokens = np.pad(np.concatenate([row, [7, 8, 9]]), (0, 32 - len(row))).astype(np.int32)
        full, _ = logits_of(params, tokens[None], config)
        assert relative_error(cached[:, lane], full[0, len(row) - 1 : len(row) + 3]) <= 1e-4


def test_the_error_of_bfloat16_is_of_its_own_size() -> None:
    tokens = random_tokens(PLAIN, 2, 24)
    exact, _ = logits_of(base_of("plain"), tokens, PLAIN)
    rounded, _ = logits_of(base_of("plain", "bfloat16"), tokens, PLAIN)
    assert rounded.dtype == np.float32
    assert 1e-4 < relative_error(rounded, exact) < 3e-2


def test_a_later_token_changes_no_earlier_logits(model) -> None:
    params, config = model
    tokens = random_tokens(config, 1, 12)
    changed = tokens.copy()
    changed[0, 8] = (changed[0, 8] + 1) % config.vocab_size
    before, after = logits_of(params, tokens, config)[0], logits_of(params, changed, config)[0]
    assert np.array_equal(before[:, :8], after[:, :8])
    assert not np.allclose(before[:, 8:], after[:, 8:], atol=1e-3)


@pytest.mark.parametrize(
    "name, size, batches", [("plain", 32, (2, 4, 8)), ("odd", 32, (2, 4, 8)), ("equal", 32, (8,)), ("odd", 128, (3,))]
)
def test_a_lane_has_the_same_bits_in_any_batch(name: str, size: int, batches: tuple[int, ...]) -> None:
    params, config = base_of(name), CONFIGS[name]
    rows = [random_tokens(config, n, seed=n) for n in (19, 5, 32, 1, 27, 9, 30, 12)]
    alone = take_in(params, config, rows[:1], size, steps=3)[:, 0]
    for batch in batches:
        assert np.array_equal(take_in(params, config, rows[:batch], size, steps=3)[:, 0], alone), batch


def test_a_lane_has_the_same_bits_beside_longer_neighbours(model) -> None:
    params, config = model
    mine = random_tokens(config, 20)
    short = [random_tokens(config, 4, seed=1)]
    long = [random_tokens(config, 290, seed=2)]  # in another block of the attention loop
    beside_short = take_in(params, config, [mine, *short], 300, steps=3)[:, 0]
    beside_long = take_in(params, config, [mine, *long], 300, steps=3)[:, 0]
    assert np.array_equal(beside_short, beside_long)
    alone = take_in(params, config, [mine], 300, steps=3)[:, 0]
    assert np.array_equal(alone, beside_long)


def test_what_lies_beyond_a_lanes_length_does_not_matter(model) -> None:
    params, config = model
    rows = [random_tokens(config, 11)]
    clean = take_in(params, config, rows, 32, steps=2)
    tokens = np.zeros((1, 32), np.int32)
    tokens[0, :11] = rows[0]
    dirty: Cache = jax.tree.map(lambda x: jnp.full_like(x, 9), init_cache(config, 1, CAPACITY))
    dirty = dirty.replace(length=jnp.zeros(1, jnp.int32))
    logits, _ = step_of(config)(params, dirty, jnp.asarray(tokens), jnp.asarray([11], jnp.int32))
    assert np.array_equal(np.asarray(logits), clean[0])
