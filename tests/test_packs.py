"""Packs in the forward pass: the promises P1 and P8 with packs, slots, phases, merging."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import ODD, PLAIN, random_base, random_tokens, relative_error

from mbjax.core.cache import init_cache
from mbjax.core.decode import decode, new_board, prefill, prefill_fuse, prefill_understand
from mbjax.core.expert import declare_expert, expert_config
from mbjax.core.forward import catch_up, forward
from mbjax.core.lora import LowRank, declare_lora, merge
from mbjax.core.pack import Mix, Pack
from mbjax.core.param import abstract_params
from mbjax.core.sampling import Sampling
from mbjax.core.slots import Slot, layout_for, to_slot

EXPERT = expert_config(PLAIN, 2, d_model=32, d_ff=48)


def filled(declared, seed: int):
    """Random values for every declared parameter: a trained pack, nothing at zero."""
    rng = np.random.default_rng(seed)

    def draw(shape):
        noise = rng.standard_normal(shape.shape).astype(shape.dtype)
        return jnp.asarray(0.5 + 0.1 * noise if len(shape.shape) < 2 else noise / np.sqrt(shape.shape[-1]))

    return jax.tree.map(draw, abstract_params(declared))


def lora_pack(config=PLAIN, rank=4, seed=0, **options) -> Pack:
    return Pack(lora=filled(declare_lora(config, rank, 8.0, **options), seed))


def expert_pack(seed=1, shape=EXPERT) -> Pack:
    return Pack(expert=filled(declare_expert(PLAIN, shape), seed))


PACKS = (lora_pack(), dataclasses.replace(expert_pack(), lora=lora_pack(rank=2, seed=2, targets=("q", "down")).lora))
BASE, TOKENS = random_base(PLAIN), random_tokens(PLAIN, 2, 150)


def run(packs, gates, tokens=TOKENS, cache=None, base=BASE, config=PLAIN):
    logits, cache = forward(base, packs, jnp.asarray(gates), jnp.asarray(tokens), config=config, cache=cache)
    return np.asarray(logits), cache


def no_gates(tokens=TOKENS):
    return np.zeros((*tokens.shape, 0), np.float32)


def changing_gates(n_packs: int, seed=3) -> np.ndarray:
    """Gates that change from token to token, about half of them 0."""
    rng = np.random.default_rng(seed)
    gates = rng.uniform(0.2, 1, (*TOKENS.shape, n_packs)) * (rng.uniform(size=(*TOKENS.shape, n_packs)) > 0.5)
    return gates.astype(np.float32)


@pytest.mark.parametrize("packs", [PACKS[:1], (expert_pack(),), PACKS])
def test_p1_a_gate_of_zero_is_the_base(packs):
    gates = np.zeros((*TOKENS.shape, len(packs)), np.float32)
    base, _ = run((), no_gates())
    assert relative_error(run(packs, gates)[0], base) <= 1e-6
    assert relative_error(run(packs, gates + 1)[0], base) > 1e-3  # the packs do something


def test_a_gate_of_zero_selects_the_base_even_beside_nan():
    """A NaN in the pack of one lane does not reach the others: terms are selected, not multiplied away."""
    poisoned = (jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), expert_pack()), PACKS[0])
    gates = np.zeros((*TOKENS.shape, 2), np.float32)
    gates[1, :, 0] = 1  # lane 1 uses the pack that is all NaN
    gates[0, :, 1] = 1  # lane 0 another
    logits, _ = run(poisoned, gates)
    assert np.isnan(logits[1]).all()
    alone, _ = run((PACKS[0],), gates[:, :, 1:])
    np.testing.assert_allclose(logits[0], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packs", [PACKS[:1], (expert_pack(),), PACKS])
def test_p8_with_gates_that_change_from_token_to_token(packs):
    gates = changing_gates(len(packs))
    full, _ = run(packs, gates)
    experts = tuple(pack.expert.config if pack.expert is not None else None for pack in packs)
    cache, parts = init_cache(PLAIN, 2, 160, experts=experts), []
    for start, stop in ((0, 64), (64, 128), *((t, t + 1) for t in range(128, 150))):
        logits, cache = run(packs, gates[:, start:stop], TOKENS[:, start:stop], cache)
        parts.append(logits)
    assert relative_error(np.concatenate(parts, axis=1), full) <= 1e-4


def test_p8_with_a_pack_switched_on_at_token_100():
    """The expert that comes late has read the whole conversation, from the tap states kept."""
    gates = changing_gates(2)
    gates[:, :100, 1] = 0
    full, _ = run(PACKS, gates)
    before = (PACKS[0], Pack())
    cache, parts = init_cache(PLAIN, 2, 160, experts=(None, EXPERT)), []
    logits, cache = run(before, gates[:, :100], TOKENS[:, :100], cache)
    parts.append(logits)
    cache = catch_up(PACKS, 1, cache)
    for start, stop in ((100, 132), *((t, t + 1) for t in range(132, 150))):
        logits, cache = run(PACKS, gates[:, start:stop], TOKENS[:, start:stop], cache)
        parts.append(logits)
    assert relative_error(np.concatenate(parts, axis=1), full) <= 1e-4
    unread, _ = run(PACKS, gates[:, 100:101], TOKENS[:, 100:101], init_cache(PLAIN, 2, 160, experts=(None, EXPERT)))
    assert relative_error(unread, full[:, 100:101]) > 1e-3  # without the past it would say something else


@pytest.mark.parametrize("config", [PLAIN, ODD])
def test_a_lora_part_equals_its_merged_weights(config):
    base, pack = random_base(config), lora_pack(config, rank=8)
    tokens = random_tokens(config, 2, 40)
    layers = list(base.layers)
    for i, deltas in enumerate(pack.lora.layers):
        if deltas is None:
            continue
        for part, names in (("attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
            old = getattr(layers[i], part)
            new = {n: merge(getattr(old, n), getattr(deltas, n), gate=0.7) for n in names}
            layers[i] = dataclasses.replace(layers[i], **{part: dataclasses.replace(old, **new)})
    merged = dataclasses.replace(base, layers=tuple(layers))
    expected, _ = run((), no_gates(tokens), tokens, base=merged, config=config)
    gates = np.full((*tokens.shape, 1), 0.7, np.float32)
    actual, _ = run((pack,), gates, tokens, base=base, config=config)
    assert relative_error(actual, expected) <= 1e-4


def test_the_two_phases_equal_the_one():
    gates, n_valid = jnp.asarray([[1.0, 0.5], [0.0, 0.8]]), jnp.asarray([32, 20], jnp.int32)
    tokens, mix = jnp.asarray(TOKENS[:, :32]), Mix(PACKS, gates)
    cache = init_cache(PLAIN, 2, 64, experts=(None, EXPERT))
    one, after_one = jax.jit(partial(prefill, config=PLAIN))(BASE, mix, cache, tokens, n_valid)
    h, running = jax.jit(partial(prefill_understand, config=PLAIN))(BASE, Mix((), gates[:, :0]), cache, tokens)
    two, after_two = jax.jit(partial(prefill_fuse, config=PLAIN))(BASE, mix, running, h, n_valid)
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(after_one), jax.tree.leaves(after_two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_slots_and_tuple_form_agree():
    layout = layout_for(PACKS, PLAIN)
    assert layout.rank == 4
    assert layout.maps == ((), ("q", "k", "v", "o", "gate", "up", "down"))
    slots = tuple(Slot(jnp.asarray(to_slot(pack, layout)), layout) for pack in PACKS)
    gates = changing_gates(2)
    assert relative_error(run(slots, gates)[0], run(PACKS, gates)[0]) <= 1e-5


def test_a_pack_that_does_not_fit_its_slot_is_refused():
    layout = layout_for([lora_pack(targets=("q",))], PLAIN)
    for pack in (lora_pack(rank=8, targets=("q",)), lora_pack(targets=("q", "v")), expert_pack()):
        with pytest.raises(ValueError, match="slot"):
            to_slot(pack, layout)
    other = expert_pack(shape=expert_config(PLAIN, 1, d_model=16))
    with pytest.raises(ValueError, match="differ in width"):
        layout_for([expert_pack(), other], PLAIN)


def test_p3_swapping_twenty_packs_compiles_nothing():
    """Packs of different ranks, targets, parts and depths in one slot layout: one program serves them all."""
    targets = (("q",), ("q", "v"), ("gate", "up", "down"), ("o", "k"))
    packs = [lora_pack(rank=1 + i % 5, seed=i, targets=targets[i % 4]) for i in range(15)]
    packs += [expert_pack(i, dataclasses.replace(EXPERT, n_layers=1 + i % 2)) for i in range(5)]
    layout = layout_for(packs, PLAIN)
    takes_in, steps = (jax.jit(partial(fn, config=PLAIN)) for fn in (prefill, decode))
    cache = init_cache(PLAIN, 1, 64, experts=(layout.expert,))
    tokens, n_valid = jnp.asarray(TOKENS[:1, :32]), jnp.asarray([32], jnp.int32)
    board, live = new_board([(Sampling(), [1])], PLAIN.vocab_size), jnp.asarray([1], jnp.int32)

    def use(pack: Pack) -> np.ndarray:
        mix = Mix((Slot(jnp.asarray(to_slot(pack, layout)), layout),), jnp.asarray(np.ones((1, 1), np.float32)))
        h, filled_cache = takes_in(BASE, mix, cache, tokens, n_valid)
        jax.block_until_ready(steps(BASE, mix, filled_cache, board, live))
        return np.asarray(h)

    first, compiled = use(packs[0]), []
    jax.monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: compiled.append(name))
    others = [use(pack) for pack in packs[1:]]
    assert compiled == []
    jax.jit(lambda x: x + 1)(jnp.asarray(np.ones(3, np.float32)))
    assert compiled  # the listener does hear a compilation
    jax.monitoring.clear_event_listeners()
    assert all(np.abs(other - first).max() > 1e-4 for other in others)  # each pack did its own work


def test_low_rank_scale_is_an_array():
    """alpha / rank is data, not part of the program: another value is another array of the same shape."""
    delta = lora_pack().lora.layers[1].q
    assert isinstance(delta, LowRank)
    assert delta.scale.shape == ()
