"""The layer kernel on bundled bases: the same numbers as operation by operation, with packs and without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_kernels import best_isa_again, isas, needs_native  # noqa: F401
from tiny import ODD, PLAIN, random_base, random_tokens, relative_error

from mbjax.core.base import Base
from mbjax.core.cache import Cache, init_cache
from mbjax.core.config import ModelConfig
from mbjax.core.decode import decode, new_board
from mbjax.core.expert import declare_expert, expert_config
from mbjax.core.forward import forward
from mbjax.core.fused import Bundle, bundled
from mbjax.core.lora import declare_lora
from mbjax.core.pack import Mix, Pack
from mbjax.core.param import abstract_params
from mbjax.core.quantize import RULES, quantize
from mbjax.core.sampling import Sampling
from mbjax.core.slots import Slot, as_pack, layout_for, to_slot

pytestmark = needs_native
DEEP = dataclasses.replace(PLAIN, n_layers=4)
QWEN = dataclasses.replace(ODD, head_dim=16, d_model=72)  # biases, norms of heads, widths that are no multiple of 32
FAR = 0.02  # a value may fall on the other side of a border of the int8 rounding of activations


def quantised(config: ModelConfig, scheme: str = "int4", *, bundle: bool = True) -> Base:
    params, unused = quantize(random_base(config), RULES[scheme])
    assert not unused
    return bundled(params, config) if bundle else params


def random_pack(config: ModelConfig, seed: int, *, expert: bool = True, rank: int = 5) -> Pack:
    rng = np.random.default_rng(seed)
    shape = Pack(
        expert=declare_expert(config, expert_config(config, 2, d_model=48, d_ff=80)) if expert else None,
        lora=declare_lora(config, rank, 2.0 * rank),
    )
    draw = lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape, np.float32).astype(leaf.dtype))
    return jax.tree.map(draw, abstract_params(shape))


def slots_of(config: ModelConfig, packs: list[Pack]) -> tuple[Slot, ...]:
    layout = layout_for(packs, config)
    return tuple(Slot(jax.device_put(to_slot(pack, layout)), layout) for pack in packs)


def experts_of(packs: tuple) -> tuple:
    return tuple(expert.config if (expert := as_pack(pack).expert) else None for pack in packs)


def cache_for(
    config: ModelConfig, batch: int, packs: tuple = (), dtype: str = "float32", *, stacked: bool = True
) -> Cache:
    return init_cache(config, batch, 64, dtype, experts_of(packs), stacked)


def run(params, config, tokens, packs=(), gates=None, dtype="float32", *, stacked=True):
    gates = jnp.zeros((*tokens.shape, len(packs)), jnp.float32) if gates is None else jnp.asarray(gates)
    cache = cache_for(config, tokens.shape[0], packs, dtype, stacked=stacked)
    logits, cache = forward(params, packs, gates, jnp.asarray(tokens), config=config, cache=cache)
    return np.asarray(logits), cache


def one_by_one(params, config, tokens, packs=(), gates=None):
    gates = np.zeros((*tokens.shape, len(packs)), np.float32) if gates is None else gates
    cache, out = cache_for(config, tokens.shape[0], packs), []
    for t in range(tokens.shape[1]):
        part, at = jnp.asarray(tokens[:, t : t + 1]), jnp.asarray(gates[:, t : t + 1])
        logits, cache = forward(params, packs, at, part, config=config, cache=cache)
        out.append(np.asarray(logits))
    return np.concatenate(out, axis=1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("config", "scheme", "tokens"), [(PLAIN, "int8", 1), (QWEN, "int4", 4), (PLAIN, "int4", 21)])
def test_the_layer_kernel_equals_operation_by_operation(dtype, config, scheme, tokens):
    whole, parts = quantised(config, scheme), quantised(config, scheme, bundle=False)
    assert isinstance(whole.layers, Bundle) and len(whole.layers) == config.n_layers
    ids = random_tokens(config, 2, tokens)
    want, want_cache = run(parts, config, ids, dtype=dtype, stacked=False)
    for _ in isas():
        got, cache = run(whole, config, ids, dtype=dtype)
        assert relative_error(got, want) < FAR
        for one, other in zip(cache.layers.unstacked(), want_cache.layers, strict=True):
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
                assert relative_error(np.asarray(a, np.float32), np.asarray(b, np.float32)) < FAR


def test_opening_a_bundle_gives_the_bits_that_went_in():
    whole, parts = quantised(QWEN), quantised(QWEN, bundle=False)
    assert isinstance(whole.layers, Bundle)
    for a, b in zip(jax.tree.leaves(whole.layers.opened()), jax.tree.leaves(parts.layers), strict=True):
        assert a.dtype == b.dtype and (np.asarray(a) == np.asarray(b)).all()


def test_packs_in_the_kernel_equal_packs_operation_by_operation():
    packs = [random_pack(DEEP, 1), random_pack(DEEP, 2, rank=3)]
    slots, ids = slots_of(DEEP, packs), random_tokens(DEEP, 2, 7)
    gates = np.random.default_rng(3).choice([0.0, 0.4, 1.0], (2, 7, 2)).astype(np.float32)
    whole, parts = quantised(DEEP), quantised(DEEP, bundle=False)
    want, _ = run(parts, DEEP, ids, tuple(packs), gates, stacked=False)
    base, _ = run(parts, DEEP, ids, stacked=False)
    assert relative_error(want, base) > 10 * FAR  # the packs matter
    for _ in isas():
        assert relative_error(run(whole, DEEP, ids, slots, gates)[0], want) < FAR
        assert relative_error(run(whole, DEEP, ids, tuple(packs), gates)[0], want) < FAR  # packs that are no slots


def test_many_tokens_with_packs_equal_operation_by_operation():
    pack, ids = random_pack(DEEP, 4), random_tokens(DEEP, 1, 37)
    gates = np.full((1, 37, 1), 0.7, np.float32)
    want, _ = run(quantised(DEEP, bundle=False), DEEP, ids, (pack,), gates, stacked=False)
    for _ in isas():
        assert relative_error(run(quantised(DEEP), DEEP, ids, slots_of(DEEP, [pack]), gates)[0], want) < FAR


def test_p1_a_gate_of_zero_leaves_the_bits_of_the_base_and_nan_stays_behind_it():
    whole, ids = quantised(DEEP), random_tokens(DEEP, 2, 3)
    bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), random_pack(DEEP, 5))
    slots = slots_of(DEEP, [random_pack(DEEP, 6), bad])
    gates = np.zeros((2, 3, 2), np.float32)
    gates[0, :, 0] = 1
    for _ in isas():
        base, _ = run(whole, DEEP, ids)
        mixed, _ = run(whole, DEEP, ids, slots, gates)
        assert (mixed[1] == base[1]).all() and np.isfinite(mixed).all() and (mixed[0] != base[0]).any()


def test_p8_tokens_one_by_one_equal_tokens_together_to_the_bit():
    packs = slots_of(DEEP, [random_pack(DEEP, 7), random_pack(DEEP, 8)])
    gates = np.zeros((1, 9, 2), np.float32)
    gates[0, 4:, 0], gates[0, 6:, 1] = 1, 0.5  # switched on in the middle
    whole, ids = quantised(DEEP), random_tokens(DEEP, 1, 9)
    for _ in isas():
        assert (one_by_one(whole, DEEP, ids) == run(whole, DEEP, ids)[0]).all()
        assert (one_by_one(whole, DEEP, ids, packs, gates) == run(whole, DEEP, ids, packs, gates)[0]).all()


def test_p8_the_cached_pass_equals_the_full_one():
    whole, ids = quantised(DEEP), random_tokens(DEEP, 2, 24)
    full, _ = forward(whole, (), jnp.zeros((2, 24, 0)), jnp.asarray(ids), config=DEEP)
    assert relative_error(run(whole, DEEP, ids)[0], np.asarray(full)) < FAR


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_a_lane_does_not_see_its_neighbours(batch):
    whole, packs = quantised(DEEP), slots_of(DEEP, [random_pack(DEEP, 9)])
    ids, gates = random_tokens(DEEP, batch, 5), np.zeros((batch, 5, 1), np.float32)
    gates[::2] = 1
    for _ in isas():
        together = run(whole, DEEP, ids, packs, gates)[0]
        for lane in range(batch):
            assert (run(whole, DEEP, ids[lane : lane + 1], packs, gates[lane : lane + 1])[0][0] == together[lane]).all()


def test_p3_another_pack_in_the_slot_compiles_nothing():
    whole, packs = quantised(DEEP), [random_pack(DEEP, seed) for seed in range(4)]
    step = jax.jit(decode, static_argnames="config")
    for i, slot in enumerate(slots_of(DEEP, packs)):
        mix = Mix((slot,), jnp.ones((1, 1), jnp.float32))
        board = new_board([(Sampling(), [1])], DEEP.vocab_size)
        step(whole, mix, cache_for(DEEP, 1, (slot,)), board, jnp.asarray([1], jnp.int32), config=DEEP)
        assert step._cache_size() == 1, i  # pyright: ignore[reportAttributeAccessIssue]


def test_a_layout_that_points_outside_the_weights_is_refused():
    whole = quantised(PLAIN)
    assert isinstance(whole.layers, Bundle)
    short = dataclasses.replace(whole.layers, weights=whole.layers.weights[:-4096])
    with pytest.raises(Exception, match="outside the weights"):
        run(dataclasses.replace(whole, layers=short), PLAIN, random_tokens(PLAIN, 1, 1))
    with pytest.raises(Exception, match="do not fit the cache"):
        run(whole, PLAIN, random_tokens(PLAIN, 1, 65))


def test_a_plain_base_and_a_head_width_without_a_kernel_stay_as_they_are():
    for params, config in ((random_base(PLAIN), PLAIN), (quantised(ODD, bundle=False), ODD)):
        assert bundled(params, config) is params
