"""The router's pure part: pooling, scores, selection, gates, and the routed pass in one program."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_packs import lora_pack
from tiny import PLAIN, random_base, random_tokens, relative_error

from mbjax.core.forward import forward
from mbjax.core.router import (
    FEWEST_TOKENS,
    Key,
    Pooled,
    Space,
    add_to_pool,
    choose_packs,
    empty_pool,
    forward_routed,
    gate_matrix,
    gates_for,
    score_pooled,
)


def random_space(width: int = PLAIN.d_model, seed: int = 0) -> Space:
    rng = np.random.default_rng(seed)
    whitening = rng.standard_normal((width, width)).astype(np.float32) / np.sqrt(width)
    return Space(jnp.asarray(rng.standard_normal(width).astype(np.float32)), jnp.asarray(whitening))


def random_key(seed: int, width: int = PLAIN.d_model) -> Key:
    rng = np.random.default_rng(seed)
    return Key(jnp.asarray(rng.standard_normal(width).astype(np.float32)), jnp.asarray(np.zeros(1, np.float32)))


def test_pooling_is_the_mean_of_unit_states_and_ignores_tokens_without_weight():
    rng = np.random.default_rng(0)
    h, weights = rng.standard_normal((2, 7, 16)).astype(np.float32), np.float32([[0, 1, 1, 0, 0.5, 0, 0]] * 2)
    h[:, 3] = np.nan  # padding may hold anything
    pooled = add_to_pool(empty_pool(2, 16), jnp.asarray(h), jnp.asarray(weights))
    unit = h / np.sqrt((h**2).mean(axis=-1, keepdims=True) + 1e-6)
    expected = (unit[:, 1] + unit[:, 2] + 0.5 * unit[:, 4]) / 2.5
    np.testing.assert_allclose(pooled.total / pooled.weight[:, None], expected, atol=1e-6)
    parts = empty_pool(2, 16)
    for at in (slice(0, 3), slice(3, 7)):
        parts = add_to_pool(parts, jnp.asarray(h[:, at]), jnp.asarray(weights[:, at]))
    np.testing.assert_allclose(parts.total, pooled.total, atol=1e-5)


def test_a_prompt_without_weight_calls_for_nothing():
    pooled = Pooled(jnp.ones((1, PLAIN.d_model)), jnp.zeros((1,)))
    assert float(score_pooled(random_space(), random_key(1), pooled)[0]) == 0


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ({"a": 0.9, "b": 0.4}, ["a"]),
        ({"a": 0.5, "b": 0.5}, ["a", "b"]),  # equal scores by id
        ({"c": 0.7, "b": 0.8, "a": 0.6}, ["b", "c"]),  # the best two
        ({"a": 0.4, "b": 0.49}, []),
        ({"chat": 0.99, "b": 0.6}, ["b"]),  # chat gives way
        ({"chat": 0.99, "b": 0.4}, ["chat"]),
    ],
)
def test_selection(scores, chosen):
    assert choose_packs(scores, dict.fromkeys(scores, 0.5), 9.0) == chosen


@pytest.mark.parametrize(
    ("n_read", "chosen"), [(0.0, ["chat"]), (FEWEST_TOKENS - 1, ["chat"]), (FEWEST_TOKENS, ["b", "a"])]
)
def test_a_prompt_of_one_or_two_tokens_fetches_no_pack(n_read, chosen):
    scores = {"a": 0.8, "b": 0.9, "chat": 0.6}
    assert choose_packs(scores, dict.fromkeys(scores, 0.5), n_read) == chosen
    assert choose_packs({**scores, "chat": 0.1}, dict.fromkeys(scores, 0.5), 2.0) == []


def test_gates():
    assert gates_for([], "root") == [] and gates_for([0.9], "share") == [1.0]
    assert gates_for([0.9, 0.6], "one") == [1.0, 1.0]
    assert gates_for([0.9, 0.6], "root") == pytest.approx([2**-0.5] * 2)
    assert gates_for([0.9, 0.6], "share") == pytest.approx([0.6, 0.4])
    assert gates_for([None, None], "share") == [0.5, 0.5]
    with pytest.raises(ValueError, match="gate rule"):
        gates_for([0.9, 0.6], "all")


@pytest.mark.parametrize("rule", ["one", "root", "share"])
def test_the_jitted_selection_is_the_one_on_the_host(rule):
    rng = np.random.default_rng(0)
    ids = ["a", "b", "c", "d"]
    scores = rng.choice([0.2, 0.5, 0.6, 0.6, 0.9], (40, 4)).astype(np.float32)
    thresholds = np.float32([0.5, 0.55, 0.6, 0.1])
    n_read = rng.choice([1.0, 2.0, 3.0, 20.0], 40).astype(np.float32)
    arrays = [jnp.asarray(array) for array in (scores, thresholds, n_read)]
    gates = np.asarray(gate_matrix(*arrays, rule=rule, most=2))
    assert (gates[n_read < FEWEST_TOKENS] == 0).all()
    for row, read, found in zip(scores, n_read.tolist(), gates, strict=True):
        own = dict(zip(ids, row.tolist(), strict=True))
        chosen = choose_packs(own, dict(zip(ids, thresholds.tolist(), strict=True)), read)
        expected = dict(zip(chosen, gates_for([own[p] for p in chosen], rule), strict=True))
        np.testing.assert_allclose(found, [expected.get(pack, 0.0) for pack in ids], rtol=1e-6)


def test_the_routed_pass_is_the_gated_forward_pass():
    base, space = random_base(PLAIN), random_space()
    packs, keys = (lora_pack(seed=1), lora_pack(seed=2), lora_pack(seed=3)), tuple(random_key(i) for i in (1, 2, 3))
    tokens = jnp.asarray(random_tokens(PLAIN, 3, 20))
    weights = jnp.asarray(np.float32([[0] * 4 + [1] * 16] * 3))
    thresholds = jnp.asarray(np.float32([0.5, 0.5, 0.5]))
    logits, gates, scores = forward_routed(base, space, keys, thresholds, packs, tokens, weights, config=PLAIN)
    assert len({tuple(row) for row in np.asarray(gates > 0).tolist()}) > 1  # the lanes call for different packs
    assert not ((np.asarray(scores) < 0.5) & (np.asarray(gates) > 0)).any()
    per_token = jnp.broadcast_to(gates[:, None, :], (3, 20, 3))
    expected, _ = forward(base, packs, per_token, tokens, config=PLAIN)
    assert relative_error(np.asarray(logits), np.asarray(expected)) <= 1e-5
