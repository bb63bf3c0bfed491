"""The steps of generation, as pure functions: take in part of a prompt, choose a token, do both for one token.

Axis letters: N lanes, B rows of a step (each one of the lanes, see `Cache.seats`), T tokens, D model width.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.base import Base, head
from mbjax.core.cache import Cache
from mbjax.core.config import ModelConfig
from mbjax.core.forward import advance, fuse, understand
from mbjax.core.pack import Mix
from mbjax.core.sampling import Lanes, Sampling, first_largest, lanes_of, sample

BUCKETS = (32, 128, 512)  # lengths that prefill programs are compiled for


@flax.struct.dataclass
class Board:
    """What each of the N lanes is about to do: the token it takes in next, and how it samples."""

    token: jax.Array  # int32 [N]
    sampling: Lanes


def new_board(requests: list[tuple[Sampling, list[int]]], vocab_size: int) -> Board:
    """The board of (settings, prompt token ids) pairs, before any token was chosen."""
    return Board(jax.device_put(np.zeros(len(requests), np.int32)), lanes_of(requests, vocab_size))


def chunk_sizes(n_tokens: int, buckets: tuple[int, ...] = BUCKETS) -> list[int]:
    """The buckets that a prompt of `n_tokens` is taken in by; the last is padded. They depend on its length alone.

    A bucket is used when the rest fills more than half of it: beyond that, padding costs more than another chunk.
    """
    sizes = []
    while n_tokens > 0:
        fitting = [b for b in buckets if n_tokens > b // 2]
        size = max(fitting, default=buckets[0])
        sizes.append(size)
        n_tokens -= size
    return sizes


def prefill(
    params: Base, mix: Mix, cache: Cache, tokens: jax.Array, n_valid: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, Cache]:
    """Takes in tokens int32 [B, T], of which the first n_valid int32 [B] count; the rest is padding.

    Returns the last valid token's final hidden state [B, D] and the longer cache.
    """
    h, cache = prefill_understand(params, mix, cache, tokens, config=config)
    return prefill_fuse(params, mix, cache, h, n_valid, config=config)


def prefill_understand(
    params: Base, mix: Mix, cache: Cache, tokens: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, Cache]:
    """The first phase of `prefill`: the tap states [B, T, D]. Where no pack in use touches the understanding layers
    it needs none of them, and a router may choose them from what it returns."""
    h, running = understand(params, mix.packs, mix.per_token(tokens.shape[1]), tokens, cache, config=config)
    assert running is not None
    return h, running


def prefill_fuse(
    params: Base, mix: Mix, cache: Cache, h: jax.Array, n_valid: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, Cache]:
    """The second phase of `prefill`: experts and fusion layers over the tap states [B, T, D]."""
    h, running = fuse(params, mix.packs, mix.per_token(h.shape[1]), h, cache, config=config)
    assert running is not None
    last = jnp.take_along_axis(h, jnp.maximum(n_valid - 1, 0)[:, None, None], axis=1)[:, 0]
    return last, advance(running, n_valid)


def prefill_chunk(
    params: Base,
    mix: Mix,
    cache: Cache,
    tokens: jax.Array,
    n_valid: jax.Array,
    start: jax.Array,
    *,
    config: ModelConfig,
) -> tuple[jax.Array, Cache]:
    """`prefill` of a chunk from position start int32 [B] on, for lanes that have their whole prompt's length already:
    a row that only fills up a step then writes behind all that is, or will be, of value."""
    last, running = prefill(params, mix, _placed(cache, start), tokens, n_valid, config=config)
    return last, dataclasses.replace(running, length=cache.length)


def fuse_chunk(
    params: Base, mix: Mix, cache: Cache, h: jax.Array, n_valid: jax.Array, start: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, Cache]:
    """The second phase of `prefill_chunk`, over the tap states [B, T, D]."""
    last, running = prefill_fuse(params, mix, _placed(cache, start), h, n_valid, config=config)
    return last, dataclasses.replace(running, length=cache.length)


def _placed(cache: Cache, start: jax.Array) -> Cache:
    seats = jnp.arange(start.shape[0], dtype=jnp.int32) if cache.seats is None else cache.seats
    return dataclasses.replace(cache, length=cache.length.at[seats].set(start))


def choose(
    params: Base, h: jax.Array, cache: Cache, board: Board, live: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, Board]:
    """The token that follows hidden states h [B, D]: int32 [B], and the board with it. Rows whose live int32 [B] is 0
    only fill up the batch: their lanes stay as they are."""
    seats = jnp.arange(h.shape[0], dtype=jnp.int32) if cache.seats is None else cache.seats
    own = jax.tree.map(lambda x: x[seats], board)
    token, sampling = sample(head(params, h, config=config), own.sampling, cache.starts)
    awake = live > 0
    seen = jnp.where(awake[:, None], sampling.seen, own.sampling.seen)
    whole = dataclasses.replace(board.sampling, seen=board.sampling.seen.at[seats].set(seen))
    return token, Board(board.token.at[seats].set(jnp.where(awake, token, own.token)), whole)


def decode(
    params: Base, mix: Mix, cache: Cache, board: Board, live: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, Cache, Board]:
    """One step: takes in each row's token and chooses the next int32 [B]. One program whatever the prompt."""
    seats = slice(None) if cache.seats is None else cache.seats
    h, cache = prefill(params, mix, cache, board.token[seats][:, None], live, config=config)
    token, board = choose(params, h, cache, board, live, config=config)
    return token, cache, board


def decode_many(
    params: Base, mix: Mix, cache: Cache, board: Board, live: jax.Array, *, n_steps: int, config: ModelConfig
) -> tuple[jax.Array, Cache, Board]:
    """So many steps as one program: the tokens int32 [n_steps, B]. For devices that wait for the host between two
    programs longer than a step takes."""

    def one(i: jax.Array, state: tuple[jax.Array, Cache, Board]) -> tuple[jax.Array, Cache, Board]:
        tokens, cache, board = state
        token, cache, board = decode(params, mix, cache, board, live, config=config)
        return tokens.at[i].set(token), cache, board

    tokens = jnp.zeros((n_steps, live.shape[0]), jnp.int32)
    return jax.lax.fori_loop(0, n_steps, one, (tokens, cache, board))


def take_seat(
    length: jax.Array, board: Board, seat: jax.Array, n_prompt: jax.Array, one: Lanes
) -> tuple[jax.Array, Board]:
    """Gives lane `seat` int32 [] to a prompt of n_prompt int32 [] tokens that samples as the single lane `one`."""

    def put(whole: jax.Array, own: jax.Array) -> jax.Array:
        return whole.at[seat].set(own[0])

    return length.at[seat].set(n_prompt), dataclasses.replace(board, sampling=jax.tree.map(put, board.sampling, one))


def verify(
    params: Base, mix: Mix, cache: Cache, board: Board, draft: jax.Array, *, config: ModelConfig
) -> tuple[jax.Array, jax.Array, Cache, Board]:
    """Several greedy steps at once along a draft int32 [B, T - 1] of what follows each row's token.

    Returns the greedy tokens int32 [B, T], how many of them count, int32 [B] (those before the first that the draft
    has wrong, and that one), and the state as so many single steps leave it; repetition penalties are not applied.
    """
    seats = slice(None) if cache.seats is None else cache.seats
    tokens = jnp.concatenate([board.token[seats][:, None], draft], axis=1)
    h, cache = prefill_understand(params, mix, cache, tokens, config=config)
    h, running = fuse(params, mix.packs, mix.per_token(h.shape[1]), h, cache, config=config)
    assert running is not None
    found = first_largest(head(params, h, config=config))
    right = jnp.cumprod((found[:, :-1] == draft).astype(jnp.int32), axis=1)
    count = 1 + right.sum(axis=1)
    last = jnp.take_along_axis(found, (count - 1)[:, None], axis=1)[:, 0]
    return found, count, advance(running, count), dataclasses.replace(board, token=board.token.at[seats].set(last))
