"""Training by choices: packed beside one another, a line's choices have the loss that they have alone, and a pack learns
to tell the right one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from test_rows import batch_of, some_examples
from tiny import PLAIN, random_base
from tiny_packs import random_pack

from mbjax.core.base import Base, head
from mbjax.core.forward import fuse
from mbjax.core.ops import Rows
from mbjax.core.pack import Pack
from mbjax.core.train import pack_loss, tap_states
from mbjax.training.config import DataConfig, LoopConfig, LoraConfig, OptimiserConfig, PackConfig
from mbjax.training.examples import Example
from mbjax.training.pack_loop import TrainData, train_pack
from mbjax.training.rows import common_prefix, pack_rows
from mbjax.training.tap_cache import tap_cache

WEIGHT, END = 3.0, 8


def some_questions(n: int, seed: int = 0) -> list[Example]:
    """Prompts that end in an even or odd token; the right choice begins with one that tells which."""
    rng = np.random.default_rng(seed)
    examples = []
    for line in range(n):
        prompt = [5, 6, 7, *rng.integers(10, 97, rng.integers(1, 6)).tolist()]
        even = prompt[-1] % 2 == 0
        right, *wrong = ([20 if even else 21, 40], [21 if even else 20, 41, 42], [22, 43])[: 3 if line % 2 else 2]
        ids = (*prompt, *right, END)
        scored = (False,) * len(prompt) + (True,) * (len(right) + 1)
        examples.append(Example(ids, scored, line, tuple((*prompt, *w) for w in wrong)))
    return examples


def likelihood(pack: Pack, base: Base, ids: tuple[int, ...], first: int) -> jax.Array:
    """The summed log-probability of the ids from `first` on, read alone."""
    tokens, rows = jnp.asarray([ids]), Rows(jnp.arange(len(ids))[None], jnp.ones((1, len(ids)), jnp.int32))
    tap = tap_states(base, tokens, rows, config=PLAIN).astype(jnp.float32)
    h, _ = fuse(base, (pack,), jnp.ones((1, len(ids), 1)), tap, None, config=PLAIN, rows=rows)
    logprobs = jax.nn.log_softmax(head(base, h, config=PLAIN)[0])
    return sum((logprobs[i - 1, ids[i]] for i in range(first, len(ids))), jnp.zeros(()))


def directly(pack: Pack, base: Base, examples: list[Example]) -> jax.Array:
    """The loss by its definition, each choice in a pass of its own."""
    total = jnp.zeros(())
    for example in examples:
        first = example.scored.index(True)
        total -= likelihood(pack, base, example.ids, first)
        if example.wrong:
            choices = [example.ids[:-1], *example.wrong]
            scores = jnp.stack([likelihood(pack, base, ids, first) for ids in choices])
            total += WEIGHT * (jax.nn.logsumexp(scores) - scores[0])
    return total


def test_loss_and_gradient_are_those_of_the_choices_alone():
    base, pack = random_base(PLAIN), random_pack(PLAIN, expert=False)
    pack = jax.tree.map(lambda leaf: jnp.asarray(leaf) * 0.1, pack)
    examples = [*some_questions(3), *some_examples(2)]  # plain ones in the same rows
    rows = pack_rows(examples, 64, seed=0)
    batch, ones = batch_of(rows, base), jnp.ones(len(rows))

    def packed(pack: Pack) -> tuple[jax.Array, jax.Array]:
        return pack_loss(pack, base, batch, ones, config=PLAIN, choice_weight=WEIGHT)

    (loss, n), gradient = jax.value_and_grad(packed, has_aux=True)(pack)
    wanted, wanted_gradient = jax.value_and_grad(directly)(pack, base, examples)
    assert int(n) == sum(sum(e.scored) for e in examples)
    np.testing.assert_allclose(float(loss), float(wanted), rtol=2e-3)  # tap states are rounded to bfloat16
    for found, direct in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True):
        np.testing.assert_allclose(found, direct, atol=0.02 * float(jnp.abs(direct).max()) + 1e-4)


def test_rows_keep_their_questions():
    examples = some_questions(30)
    rows = pack_rows(examples, 64, seed=1, prefix=common_prefix(examples))
    assert rows.choices is not None
    n_choices = sum(1 + len(e.wrong) for e in examples)
    assert (rows.choices.question >= 0).sum() == n_choices and rows.choices.right.sum() == len(examples)
    assert (rows.choices.of >= 0).sum() == sum(
        sum(e.scored) - 1 + sum(len(w) - e.scored.index(True) for w in e.wrong) for e in examples
    )
    first = rows.first(2)
    assert len(first) == 2 and first.choices is not None and first.choices.of.shape == first.target.shape


def test_a_prompt_stands_once_for_all_its_choices():
    (example,) = some_questions(1)
    rows = pack_rows([example], 64, seed=0, prefix=3)
    first = example.scored.index(True)
    behind = [example.ids[first:], *(ids[first:] for ids in example.wrong)]
    n_used = first + sum(map(len, behind))
    assert rows.n_used == n_used
    assert rows.tokens[0, :n_used].tolist() == [*example.ids[:first], *(token for ids in behind for token in ids)]
    starts = [first + sum(map(len, behind[:i])) for i in range(len(behind))]
    assert all(rows.positions[0, start] == first for start in starts)


CONFIG = PackConfig(
    id="tiny",
    data=DataConfig("train.jsonl", "valid.jsonl"),
    lora=LoraConfig(rank=4, alpha=8.0),
    optimiser=OptimiserConfig(learning_rate=2e-2),
    loop=LoopConfig(steps=60, rows=4, validate_every=20, checkpoint_every=60, choice_weight=WEIGHT),
)


def chosen(pack: Pack, base: Base, examples: list[Example]) -> float:
    """The share of examples whose right choice is the most likely."""
    right = 0
    for example in examples:
        first = example.scored.index(True)
        scores = [float(likelihood(pack, base, ids, first)) for ids in (example.ids[:-1], *example.wrong)]
        right += scores[0] == max(scores)
    return right / len(examples)


def test_a_pack_learns_to_choose_and_the_mean_of_its_steps_does_too(home, tmp_path):
    base = random_base(PLAIN)
    both = [pack_rows(some_questions(n, seed), 64, seed) for n, seed in ((200, 0), (20, 1))]
    data, valid = (TrainData(rows, tap_cache(base, "digest", PLAIN, rows)) for rows in both)
    asked = some_questions(20, seed=2)
    before = chosen(Pack(), base, asked)
    for average in (0.0, 0.9):
        config = dataclasses.replace(CONFIG, loop=dataclasses.replace(CONFIG.loop, average=average))
        pack, events = train_pack(config, base, PLAIN, data, valid, tmp_path / f"run{average}")
        losses = [event.valid_loss for event in events if event.valid_loss is not None]
        assert losses[-1] < losses[0] and chosen(pack, base, asked) > max(0.9, before)
