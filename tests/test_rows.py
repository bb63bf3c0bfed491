"""Packed rows: every example whole, once, behind the shared prefix, and its loss what it would be alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tiny import PLAIN, random_base

from mbjax.core.ops import Rows
from mbjax.core.pack import Pack
from mbjax.core.train import Batch, pack_loss, summed_loss, tap_states
from mbjax.training.examples import Example
from mbjax.training.rows import common_prefix, pack_rows


def some_examples(n: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    examples = []
    for line in range(n):
        own, answer = rng.integers(2, 20), rng.integers(1, 6)
        ids = (5, 6, 7, *rng.integers(10, 97, own + answer).tolist())
        examples.append(Example(ids, (False,) * (3 + own) + (True,) * answer, line))
    return examples


def test_every_example_is_packed_once_and_whole():
    examples = some_examples(50)
    rows = pack_rows(examples, 64, seed=1)
    assert rows.prefix == 3
    found = {}
    for r, lines in enumerate(rows.lines):
        for s, line in enumerate(lines, 1):
            found[line] = (5, 6, 7, *rows.tokens[r, rows.segments[r] == s].tolist())
            n = (rows.segments[r] == s).sum()
            assert rows.positions[r, rows.segments[r] == s].tolist() == list(range(3, 3 + n))
    assert found == {e.line: e.ids for e in examples}


def test_the_prefix_leaves_a_token_to_predict_from():
    alike = [Example((1, 2, 3, 4), (False, False, True, True), i) for i in range(2)]
    assert common_prefix(alike) == 1
    text = [Example((1, 2, 3), (True, True, True), i) for i in range(2)]
    assert common_prefix(text) == 0


def batch_of(rows, base) -> Batch:
    tokens, marks = jnp.asarray(rows.tokens), Rows(jnp.asarray(rows.positions), jnp.asarray(rows.segments))
    tap = tap_states(base, tokens, marks, config=PLAIN)
    choices = jax.tree.map(jnp.asarray, rows.choices)
    return Batch(tokens, marks, jnp.asarray(rows.at), jnp.asarray(rows.target), tap, choices)


def loss_of(rows, base) -> tuple[float, int]:
    total, n = pack_loss(Pack(), base, batch_of(rows, base), jnp.ones(len(rows)), config=PLAIN)
    return float(total), int(n)


def test_packing_changes_no_loss():
    """Packed with a shared prefix or each in a row of its own without one: the same loss."""
    base, examples = random_base(PLAIN), some_examples(12)
    packed, n = loss_of(pack_rows(examples, 64, seed=0), base)
    alone = [loss_of(pack_rows([example], 32, seed=0, prefix=0), base) for example in examples]
    assert n == sum(count for _, count in alone) == sum(sum(e.scored) for e in examples)
    assert abs(packed - sum(loss for loss, _ in alone)) / packed < 2e-3  # tap states are rounded to bfloat16


def test_rows_in_groups_lose_what_they_lose_together():
    base, rows = random_base(PLAIN), pack_rows(some_examples(40), 64, seed=0)
    batch, gate = batch_of(rows, base), jnp.ones(len(rows))
    together, n = pack_loss(Pack(), base, batch, gate, config=PLAIN)
    for at_once in (1, 4, len(rows)):
        total, count = summed_loss(partial(pack_loss, config=PLAIN), Pack(), base, batch, gate, at_once)
        assert int(count) == int(n)
        np.testing.assert_allclose(float(total), float(together), rtol=1e-5)
