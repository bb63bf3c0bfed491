"""The steps of generation: how a prompt is cut, and that one step is prefill and choice together."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tiny import PLAIN, logits_of, no_packs, random_base, random_tokens

from mbjax.core.cache import init_cache
from mbjax.core.decode import BUCKETS, choose, chunk_sizes, decode, new_board, prefill, verify
from mbjax.core.sampling import Sampling


def test_chunks_hold_the_prompt_without_wasting_half() -> None:
    for n_tokens in range(1, 2100):
        sizes = chunk_sizes(n_tokens)
        assert set(sizes) <= set(BUCKETS)
        padding = sum(sizes) - n_tokens
        assert 0 <= padding < max(sizes[-1] / 2, BUCKETS[0]), n_tokens
        assert sum(sizes[:-1]) < n_tokens, "no chunk is padding alone"


def test_chunks_are_as_documented() -> None:
    assert chunk_sizes(0) == []
    assert chunk_sizes(1) == [32]
    assert chunk_sizes(64) == [32, 32]
    assert chunk_sizes(65) == [128]
    assert chunk_sizes(512 + 65) == [512, 128]
    assert chunk_sizes(5, (4, 8)) == [8]


def test_greedy_steps_follow_the_full_pass() -> None:
    params, prompt = random_base(PLAIN), random_tokens(PLAIN, 2, 5)
    board, live = new_board([(Sampling(), [])] * 2, PLAIN.vocab_size), jnp.ones(2, jnp.int32)
    step, first = (jax.jit(partial(fn, config=PLAIN)) for fn in (decode, choose))
    cache = init_cache(PLAIN, 2, 16)
    h, cache = jax.jit(partial(prefill, config=PLAIN))(
        params, no_packs(2), cache, jnp.asarray(prompt), jnp.full(2, 5, jnp.int32)
    )
    token, board = first(params, h, cache, board, live)
    chosen = [np.asarray(token)]
    for _ in range(5):
        token, cache, board = step(params, no_packs(2), cache, board, live)
        chosen.append(np.asarray(token))
    sequence = np.concatenate([prompt, np.stack(chosen, axis=1)], axis=1)
    full, _ = logits_of(params, sequence, PLAIN)
    assert np.array_equal(full.argmax(axis=-1)[:, 4:-1], sequence[:, 5:])
    assert np.array_equal(np.asarray(cache.length), [10, 10])
    assert all(np.asarray(board.sampling.seen)[lane, sequence[lane, 5:]].all() for lane in range(2))


def test_a_verified_draft_leaves_what_single_steps_leave() -> None:
    params, prompt = random_base(PLAIN), random_tokens(PLAIN, 1, 5)
    step, first, take_in, checks = (jax.jit(partial(fn, config=PLAIN)) for fn in (decode, choose, prefill, verify))
    live = jnp.ones(1, jnp.int32)

    def start():
        cache, board = init_cache(PLAIN, 1, 32), new_board([(Sampling(), [])], PLAIN.vocab_size)
        h, cache = take_in(params, no_packs(1), cache, jnp.asarray(prompt), jnp.full(1, 5, jnp.int32))
        token, board = first(params, h, cache, board, live)
        return int(np.asarray(token)[0]), cache, board

    _, cache, board = start()
    tokens = []
    for _ in range(9):
        token, cache, board = step(params, no_packs(1), cache, board, live)
        tokens.append(int(np.asarray(token)[0]))
    for right in range(4):
        draft = tokens[:right] + [(token + 1) % PLAIN.vocab_size for token in tokens[right:3]]
        _, cache, board = start()
        found, count, cache, board = checks(params, no_packs(1), cache, board, jnp.asarray([draft], jnp.int32))
        n = int(np.asarray(count)[0])
        assert n == right + 1 and np.asarray(found)[0, :n].tolist() == tokens[:n]
        rest = []
        for _ in range(9 - n):
            token, cache, board = step(params, no_packs(1), cache, board, live)
            rest.append(int(np.asarray(token)[0]))
        assert rest == tokens[n:]
