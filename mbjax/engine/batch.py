"""Greedy answers to many prompts at once: lanes of one batch, each with its own length."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.base import Base
from mbjax.core.cache import Cache
from mbjax.core.config import ModelConfig
from mbjax.core.decode import chunk_sizes
from mbjax.core.forward import Packs
from mbjax.core.pack import Mix
from mbjax.core.sampling import Sampling, lanes_of
from mbjax.engine.programs import Programs, kv_dtype_of

LANES = 8
_CAPACITY_STEP = 256  # capacities are rounded up to it, so that few programs are ever compiled


def answer_all(
    params: Base,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    packs: Packs = (),
    *,
    gates: np.ndarray | None = None,
    max_tokens: int,
    ends: frozenset[int],
    progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """The greedy continuation of each prompt, at most `max_tokens` ids, without the id of `ends` that closes it.

    `packs` are forced on all of them, with `gates` float32 [N, P], or of 1. Prompts that are taken in by the same
    chunks share a batch, so that an answer does not depend on the neighbours.
    `progress(done, total)` counts prompts.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    if not prompts:
        return answers
    longest = max(max(sum(chunk_sizes(len(ids))), len(ids) + max_tokens) for ids in prompts)
    capacity = padded_capacity(longest)
    kv_dtype = kv_dtype_of(params)
    programs = Programs(params, config, packs, batch=LANES, capacity=capacity, kv_dtype=kv_dtype)
    gates = np.ones((len(prompts), len(packs)), np.float32) if gates is None else gates
    cache, done = programs.new_cache(), 0
    for members in alike(prompts):
        which = [members[min(lane, len(members) - 1)] for lane in range(LANES)]  # the last fills the rest
        lanes, mix = [prompts[i] for i in which], Mix(packs, jnp.asarray(gates[which]))
        cache = dataclasses.replace(cache, length=jnp.zeros_like(cache.length))
        ids, cache = _answer(params, mix, programs, cache, lanes, max_tokens, ends)
        for i, answer in zip(members, ids, strict=False):
            answers[i] = answer
        done += len(members)
        if progress is not None:
            progress(done, len(prompts))
    return answers


def padded_capacity(n_positions: int) -> int:
    """The capacity of a cache for so many positions: one of few, so that few programs are compiled."""
    return -(-n_positions // _CAPACITY_STEP) * _CAPACITY_STEP


def alike(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of prompts, at most LANES to a batch, all of a batch with the same chunks."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        groups.setdefault(tuple(chunk_sizes(len(prompts[i]))), []).append(i)
    return [group[at : at + LANES] for group in groups.values() for at in range(0, len(group), LANES)]


def _answer(
    params: Base,
    mix: Mix,
    programs: Programs,
    cache: Cache,
    lanes: list[Sequence[int]],
    max_tokens: int,
    ends: frozenset[int],
) -> tuple[list[list[int]], Cache]:
    h, cache = _take_in(params, mix, programs, cache, lanes)
    states = lanes_of([(Sampling(), list(ids)) for ids in lanes], programs.config.vocab_size)
    token, states = programs.choose()(params, h, states, cache.length)
    answers: list[list[int]] = [[] for _ in lanes]
    running = set(range(len(lanes)))
    for step in range(max_tokens):
        for lane, value in enumerate(np.asarray(token).tolist()):
            if lane in running and value not in ends:
                answers[lane].append(value)
            else:
                running.discard(lane)
        if not running or step + 1 == max_tokens:
            break
        token, cache, states = programs.decode()(params, mix, cache, token, states)
    return answers, cache


def _take_in(
    params: Base, mix: Mix, programs: Programs, cache: Cache, lanes: list[Sequence[int]]
) -> tuple[jax.Array, Cache]:
    """Prefill of all lanes; only the last chunk is padded, to each lane's own length."""
    at, h = 0, None
    for size in chunk_sizes(len(lanes[0])):
        tokens, n_valid = np.zeros((len(lanes), size), np.int32), np.zeros(len(lanes), np.int32)
        for lane, ids in enumerate(lanes):
            part = ids[at : at + size]
            tokens[lane, : len(part)], n_valid[lane] = part, len(part)
        h, cache = programs.prefill(size)(params, mix, cache, jnp.asarray(tokens), jnp.asarray(n_valid))
        at += size
    assert h is not None
    return h, cache
