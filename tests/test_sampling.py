"""Sampling: every cut against a plain numpy version, seeds that reproduce, lanes that mind only themselves."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbjax.core.sampling import Sampling, first_largest, lanes_of, sample
from mbjax.errors import InputError

VOCAB = 50
jitted = jax.jit(sample)


def reference(logits: np.ndarray, settings: Sampling, seen: list[int]) -> np.ndarray:
    """The probabilities to draw from, float64 [V], by sorting."""
    logits = logits.astype(np.float64)
    for token in set(seen):
        by = settings.repetition_penalty
        logits[token] = logits[token] / by if logits[token] > 0 else logits[token] * by
    logits = logits / settings.temperature
    if settings.top_k:
        logits[logits < np.sort(logits)[-settings.top_k]] = -np.inf
    probs = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-probs)
    before = np.cumsum(probs[order]) - probs[order]
    probs[order[before >= settings.top_p]] = 0
    probs[probs < settings.min_p * probs.max()] = 0
    return probs / probs.sum()


def draw(logits: np.ndarray, settings: list[Sampling], seen: list[int], position: int = 3) -> np.ndarray:
    """One token per entry of settings, all from the same logits [V]."""
    lanes = lanes_of([(each, seen) for each in settings], len(logits))
    rows = jnp.asarray(np.tile(logits, (len(settings), 1)))
    token, _ = jitted(rows, lanes, jnp.full(len(settings), position, jnp.int32))
    return np.asarray(token)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_k": 1},
        {"top_p": 0.6},
        {"top_p": 1e-6},
        {"min_p": 0.1},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.5},
        {"temperature": 1.7, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_draws_follow_the_reference_distribution(settings: dict) -> None:
    logits = np.random.default_rng(1).normal(scale=2, size=VOCAB).astype(np.float32)
    seen = [3, 7, int(logits.argmax()), 3]
    options = {"temperature": 1.0, **settings}
    n_draws = 4000
    counts = np.zeros(VOCAB)
    for start in range(0, n_draws, 1000):
        lanes = [Sampling(**options, seed=seed) for seed in range(start, start + 1000)]
        counts += np.bincount(draw(logits, lanes, seen), minlength=VOCAB)
    probs = reference(logits.copy(), Sampling(**options), seen)
    assert counts[probs == 0].sum() == 0, "a token that the cuts leave out was drawn"
    spread = np.sqrt(n_draws * probs * (1 - probs))
    assert (np.abs(counts - n_draws * probs) <= 5 * spread + 1).all()


def test_top_k_and_top_p_keep_what_is_equal_to_the_last_one_kept() -> None:
    logits = np.asarray([1.0, 3.0, 3.0, 3.0, -2.0], np.float32)
    for cut in ({"top_k": 2}, {"top_p": 0.4}):
        drawn = draw(logits, [Sampling(temperature=1.0, seed=seed, **cut) for seed in range(200)], [])
        assert set(drawn) == {1, 2, 3}


def test_greedy_takes_the_first_of_equal_logits() -> None:
    logits = np.asarray([0.0, 2.0, -1.0, 2.0], np.float32)
    assert list(draw(logits, [Sampling(), Sampling(seed=9)], [])) == [1, 1]
    assert list(draw(logits, [Sampling(), Sampling(temperature=1e-4)], [])[:1]) == [1], "beside a lane that samples"


def test_the_first_of_the_largest_is_what_numpy_finds_and_always_a_place() -> None:
    x = np.random.default_rng(0).integers(-3, 3, (50, 7)).astype(np.float32)
    x[0] = -np.inf
    np.testing.assert_array_equal(first_largest(jnp.asarray(x)), x.argmax(axis=-1))
    assert 0 <= first_largest(jnp.asarray([1.0, np.nan, 2.0])) < 3


def test_the_penalty_bears_on_greedy_lanes_and_on_tokens_chosen_since() -> None:
    logits = jnp.asarray(np.tile(np.asarray([5.0, 4.0, 3.0, -1.0], np.float32), (2, 1)))
    lanes = lanes_of([(Sampling(repetition_penalty=2.0), []), (Sampling(), [])], 4)
    chosen = []
    for position in range(3):
        token, lanes = jitted(logits, lanes, jnp.full(2, position, jnp.int32))
        chosen.append(np.asarray(token))
    assert [list(lane) for lane in np.stack(chosen, axis=1)] == [[0, 1, 2], [0, 0, 0]]


def test_the_penalty_of_the_prompts_tokens() -> None:
    logits = np.asarray([5.0, 4.0, 3.0, -1.0], np.float32)
    assert list(draw(logits, [Sampling(repetition_penalty=2.0)], [0])) == [1]


def test_a_seed_reproduces_and_another_differs() -> None:
    logits = np.zeros(VOCAB, np.float32)
    hot = [Sampling(temperature=1.0, seed=seed) for seed in (11, 11, 12, 2**32 - 1)]
    runs = np.stack([draw(logits, hot, [], position) for position in range(40)])
    again = np.stack([draw(logits, hot, [], position) for position in range(40)])
    assert np.array_equal(runs, again)
    assert np.array_equal(runs[:, 0], runs[:, 1])
    assert (runs[:, 0] != runs[:, 2]).mean() > 0.8
    assert len(set(runs[:, 0])) > 10, "positions draw anew"


def test_a_lane_does_not_mind_its_neighbours() -> None:
    rows = np.random.default_rng(0).normal(size=(4, VOCAB)).astype(np.float32)
    settings = [
        Sampling(temperature=0.9, top_p=0.9, seed=5),
        Sampling(temperature=2.0, top_k=7, seed=6, repetition_penalty=1.5),
        Sampling(),
        Sampling(temperature=1.0, min_p=0.02, seed=8),
    ]
    seen = [[1], [2, 3], [], [4]]
    together, _ = jitted(
        jnp.asarray(rows), lanes_of(list(zip(settings, seen, strict=True)), VOCAB), jnp.asarray([4, 9, 2, 7], jnp.int32)
    )
    for lane, position in enumerate((4, 9, 2, 7)):
        alone, _ = jitted(
            jnp.asarray(rows[lane : lane + 1]),
            lanes_of([(settings[lane], seen[lane])], VOCAB),
            jnp.asarray([position], jnp.int32),
        )
        assert int(alone[0]) == int(together[lane])


def test_no_setting_compiles_another_program() -> None:
    logits = np.zeros(VOCAB, np.float32)
    draw(logits, [Sampling()], [])
    before = jitted._cache_size()
    draw(logits, [Sampling(temperature=0.3, top_k=4, top_p=0.5, min_p=0.1, repetition_penalty=1.1, seed=3)], [1, 2])
    assert jitted._cache_size() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": 1.0},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.nan},
        {"seed": -1},
        {"seed": 2**32},
    ],
    ids=str,
)
def test_values_out_of_range_are_refused_by_name(wrong: dict) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(wrong))} is .*; it must be .*$"):
        Sampling(**wrong)
