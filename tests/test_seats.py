"""Steps for some lanes of a cache: the same bits as the whole batch, whatever the number of rows and packs."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_kernels import needs_native
from tiny import PLAIN, random_base, random_tokens, relative_error
from tiny_packs import random_pack

from mbjax.core.cache import init_cache
from mbjax.core.decode import prefill
from mbjax.core.fused import Bundle, bundled
from mbjax.core.pack import Mix
from mbjax.core.quantize import RULES, quantize
from mbjax.core.slots import Slot, layout_for, to_slot

CONFIG = dataclasses.replace(PLAIN, n_layers=4)
LANES, CAPACITY = 4, 64
take_in = jax.jit(partial(prefill, config=CONFIG))


def base_of(form: str):
    params = random_base(CONFIG)
    return params if form == "float32" else bundled(quantize(params, RULES["int8"])[0], CONFIG)


def slots(n: int, params) -> tuple:
    packs = [random_pack(CONFIG, expert=False, seed=seed) for seed in range(n)]
    layout = layout_for(packs, CONFIG)
    made = tuple(Slot(jnp.asarray(to_slot(pack, layout)), layout) for pack in packs)
    return made if isinstance(params.layers, Bundle) else tuple(jax.tree.map(jnp.asarray, pack) for pack in packs)


def run(params, packs: tuple, gates: np.ndarray, seats: list[int], tokens: np.ndarray, kv_dtype: str = "float32"):
    """Tokens [B, T] one by one through lanes `seats` of a cache of LANES: the last hidden states [B, D]."""
    cache = init_cache(CONFIG, LANES, CAPACITY, kv_dtype, (), isinstance(params.layers, Bundle))
    cache = dataclasses.replace(cache, seats=jnp.asarray(seats, jnp.int32))
    mix, ones = Mix(packs, jnp.asarray(gates)), jnp.ones((len(seats),), jnp.int32)
    for t in range(tokens.shape[1]):
        h, cache = take_in(params, mix, cache, jnp.asarray(tokens[:, t : t + 1]), ones)
    assert np.asarray(cache.length).tolist() == [tokens.shape[1] * (lane in seats) for lane in range(LANES)]
    return np.asarray(h)


@needs_native
@pytest.mark.parametrize("form", ["float32", "int8"])
@pytest.mark.parametrize("kv_dtype", ["float32", "int8"])
def test_a_row_has_the_same_bits_in_any_seat_and_company(form, kv_dtype):
    params, tokens = base_of(form), random_tokens(CONFIG, 3, 5)
    none = np.zeros((1, 0), np.float32)
    alone = run(params, (), none, [0], tokens[:1], kv_dtype)
    for seats in ([3], [2, 0], [1, 3, 0]):
        rows = len(seats)
        together = run(params, (), np.zeros((rows, 0), np.float32), seats, tokens[:rows], kv_dtype)
        assert together[0].tobytes() == alone[0].tobytes()


@needs_native
@pytest.mark.parametrize("form", ["float32", "int8"])
def test_a_row_does_not_depend_on_the_packs_of_its_neighbours(form):
    params, tokens = base_of(form), random_tokens(CONFIG, 3, 5)
    packs = slots(4, params)
    alone = run(params, packs[:1], np.float32([[0.7]]), [0], tokens[:1])
    base = run(params, (), np.zeros((1, 0), np.float32), [0], tokens[1:2])
    gates = np.float32([[0.7, 0, 0, 0], [0, 0, 0, 0], [0, 0.5, 0, 1]])
    together = run(params, packs, gates, [2, 0, 1], tokens)
    for mine, own in ((together[0], alone[0]), (together[1], base[0])):
        assert mine.tobytes() == own.tobytes() if form == "int8" else relative_error(mine, own) < 1e-5
    assert alone.tobytes() != run(params, (), np.zeros((1, 0), np.float32), [0], tokens[:1]).tobytes()
