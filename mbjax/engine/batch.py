"""Greedy answers to many prompts at once: lanes of one batch, each with its own length."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.base import Base
from mbjax.core.config import ModelConfig
from mbjax.core.decode import BUCKETS, chunk_sizes
from mbjax.core.forward import Packs
from mbjax.core.pack import Mix
from mbjax.core.sampling import Sampling
from mbjax.engine.chunks import chunks_of
from mbjax.engine.device import Device, Group
from mbjax.engine.programs import BURST, Programs, kv_dtype_of, shapes_of

LANES = 8  # of a batch on the CPU
MANY_LANES = 32  # on accelerators, where a step of so many costs little more than one of a few, and 4 GB hold them
_CAPACITY_STEP = 256  # capacities are rounded up to it, so that few programs are ever compiled


def lanes_of_batch() -> int:
    """How many prompts share a batch on this machine."""
    return LANES if jax.default_backend() == "cpu" else MANY_LANES


class BatchPrograms:
    """Programs over batches of `lanes_of_batch` lanes of one base, kept: to trace and load one again takes seconds."""

    def __init__(self, params: Base, config: ModelConfig) -> None:
        self._params, self._config = params, config
        self._kept: dict[Any, Programs] = {}

    def of(self, capacity: int, kv_dtype: str, form: Any = None) -> Programs:
        """Those for so many positions, and for packs of the form of `form`; None: for none."""
        leaves, structure = jax.tree.flatten(shapes_of(form))
        key = capacity, kv_dtype, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._kept:
            self._kept[key] = Programs(
                self._params, self._config, form, lanes=lanes_of_batch(), capacity=capacity, kv_dtype=kv_dtype
            )
        return self._kept[key]


def answer_all(
    params: Base,
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    packs: Packs = (),
    *,
    gates: np.ndarray | None = None,
    max_tokens: int,
    ends: frozenset[int],
    programs: BatchPrograms | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """The greedy continuation of each prompt, at most `max_tokens` ids, without the id of `ends` that closes it.

    `packs`, all of one form, are forced on all of them, with `gates` float32 [N, P], or of 1. Prompts that are taken
    in by the same chunks share a batch, so that an answer does not depend on the neighbours. `programs` are those of
    the base, where more calls follow.
    `progress(done, total)` counts prompts.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    if not prompts:
        return answers
    most = -(-max_tokens // BURST) * BURST  # a burst goes on to its end
    capacity = padded_capacity(max(max(sum(chunk_sizes(len(ids))), len(ids) + most) for ids in prompts))
    form = packs[0] if packs else None
    own = (programs or BatchPrograms(params, config)).of(capacity, kv_dtype_of(params), form)
    gates = np.ones((len(prompts), len(packs)), np.float32) if gates is None else gates
    device, done, lanes = Device(params, own), 0, own.lanes
    seats, live = (jnp.asarray(x) for x in (np.arange(lanes, dtype=np.int32), np.ones(lanes, np.int32)))
    for members in alike(prompts, lanes):
        which = [members[min(lane, len(members) - 1)] for lane in range(lanes)]  # the last fills the rest
        names = tuple(str(p) for p in range(len(packs)))
        group = Group(names, Mix(packs, jnp.asarray(gates[which])), seats, live)
        ids = _answer(device, group, [prompts[i] for i in which], max_tokens, ends)
        for i, answer in zip(members, ids, strict=False):
            answers[i] = answer
        done += len(members)
        if progress is not None:
            progress(done, len(prompts))
    return answers


def padded_capacity(n_positions: int) -> int:
    """The capacity of a cache for so many positions: one of few, so that few programs are compiled."""
    return -(-n_positions // _CAPACITY_STEP) * _CAPACITY_STEP


def alike(prompts: Sequence[Sequence[int]], lanes: int) -> list[list[int]]:
    """Indices of prompts, at most `lanes` to a batch, all of a batch with the same chunks."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i in sorted(range(len(prompts)), key=lambda i: len(prompts[i])):
        groups.setdefault(tuple(chunk_sizes(len(prompts[i]))), []).append(i)
    return [group[at : at + lanes] for group in groups.values() for at in range(0, len(group), lanes)]


def _answer(
    device: Device, group: Group, lanes: list[Sequence[int]], max_tokens: int, ends: frozenset[int]
) -> list[list[int]]:
    for seat, ids in enumerate(lanes):
        device.take_seat(seat, Sampling(), ids)
    tokens = np.asarray(device.choose(group, device.prefill(group, chunks_of(lanes, BUCKETS))))[None]
    answers: list[list[int]] = [[] for _ in lanes]
    running = set(range(len(lanes)))
    while True:
        for row in tokens.tolist():
            for lane in list(running):
                if row[lane] in ends:
                    running.discard(lane)
                else:
                    answers[lane].append(row[lane])
                    if len(answers[lane]) == max_tokens:
                        running.discard(lane)
        if not running:
            return answers
        tokens = np.asarray(device.burst(group)) if device.programs.bursts else np.asarray(device.step(group))[None]
