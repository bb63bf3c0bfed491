"""The compiled programs of one engine and the memory each needs, from shapes alone, before any weight is read."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbjax.core.base import Base
from mbjax.core.cache import KV_DTYPES, Cache, init_cache
from mbjax.core.config import ModelConfig
from mbjax.core.decode import (
    BUCKETS,
    Board,
    choose,
    decode,
    decode_many,
    fuse_chunk,
    new_board,
    prefill_chunk,
    take_seat,
    verify,
)
from mbjax.core.fused import Bundle
from mbjax.core.pack import Mix, Pack
from mbjax.core.quant import is_quantized
from mbjax.core.router import MAX_ACTIVE, Pooled, empty_pool, understand_chunk
from mbjax.core.sampling import Sampling
from mbjax.core.slots import Slot
from mbjax.engine.chunks import chunk_shape, parts_of
from mbjax.engine.host_memory import return_free_memory
from mbjax.errors import InputError
from mbjax.kernels.layers import MOST_PACKS

MOST_LANES = 16  # rows of a step whose bits do not depend on how many there are
LONG_CHUNK = 2048
BURST = 8  # steps that an accelerator takes as one program, where nobody waits to join in between
DRAFT = 7  # tokens of a draft; with the one before them they are one step of 8 rows


def shapes_of(tree: Any) -> Any:
    """The tree's shapes and dtypes."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays (or abstract arrays) of a tree."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def kv_dtype_of(params: Base, asked: str = "auto") -> str:
    """The dtype of keys and values: the one asked for, else that of the weights, bfloat16 for quantised ones.

    Raises InputError for one that is not known.
    """
    if asked not in ("auto", *KV_DTYPES):
        raise InputError(f"kv_dtype is '{asked}'; choose one of auto, {', '.join(KV_DTYPES)}")
    if asked != "auto":
        return asked
    return "bfloat16" if is_quantized(params.embed) else str(params.embed.dtype)


def prefill_sizes(lanes: int) -> tuple[int, ...]:
    """The chunks that prompts are taken in by: short ones where other lanes wait for their next token meanwhile, and on
    CPUs, which take in long ones no faster and would hold more for them; long ones on accelerators, which take in 512
    tokens sooner than a program is called."""
    if lanes > 1 or jax.default_backend() == "cpu":
        return BUCKETS[:-1]
    return (*BUCKETS, LONG_CHUNK)


class Programs:
    """Prefill by chunks, the choice of a token, and steps, over a cache of `lanes` lanes of `capacity` positions.

    Each is compiled when it is first asked for and kept; nothing that a prompt, a pack or a sampling setting can hold
    compiles another. `params` and `pack`, the form that every pack comes in, may be arrays or shapes. Rows of a call
    stand for lanes by their seats; packs are counted, not named.
    """

    def __init__(
        self, params: Base, config: ModelConfig, pack: Any = None, *, lanes: int, capacity: int, kv_dtype: str
    ) -> None:
        self.config, self.lanes, self.capacity, self.kv_dtype = config, lanes, capacity, kv_dtype
        self._params, self._pack = shapes_of(params), shapes_of(pack)
        self.expert = None if pack is None else _expert_config(pack)
        self._stacked = isinstance(params.layers, Bundle)
        self.bursts = jax.default_backend() != "cpu" and capacity >= BURST
        self.rereads = pack is not None and _reads_from_start(pack, config.tap)
        self._layers = jax.eval_shape(self.new_layers)
        self._own = jax.eval_shape(self.new_expert)
        self._tap = jax.eval_shape(self.new_tap)
        self._board = jax.eval_shape(self.new_board)
        self._lock = threading.RLock()
        self._compiled: dict[str, jax.stages.Compiled] = {}
        self._temporaries: dict[str, int] = {}
        self._taps: dict[str, Any] = {}
        self._pools: dict[int, Pooled] = {}

    def new_layers(self) -> Any:
        """The base's part of an empty cache."""
        return init_cache(self.config, self.lanes, self.capacity, self.kv_dtype, (), self._stacked).layers

    def new_expert(self) -> Any:
        """One pack's part of an empty cache; None where packs have no expert."""
        if self.expert is None:
            return None
        return init_cache(self.expert, self.lanes, self.capacity, self.kv_dtype, (), self._stacked).layers

    def new_tap(self) -> Any:
        """The tap states that a cache keeps; None where packs have no expert."""
        if self.expert is None:
            return None
        shape = dataclasses.replace(self.config, n_layers=1, tap=0)
        return init_cache(shape, self.lanes, self.capacity, self.kv_dtype, (self.expert,), self._stacked).tap

    def new_board(self) -> Board:
        return new_board([(Sampling(), [])] * self.lanes, self.config.vocab_size)

    def empty_pool(self, rows: int = 1) -> Pooled:
        """Of prompts of which nothing is read yet; on the device, and kept there."""
        if rows not in self._pools:
            sums, weights = np.zeros((rows, self.config.d_model), np.float32), np.zeros(rows, np.float32)
            self._pools[rows] = Pooled(*jax.device_put((sums, weights)))  # jnp's zeros would be compiled, after warm-up
        return self._pools[rows]

    def understand(self, size: int, rows: int = 1) -> jax.stages.Compiled:
        """(params, layers, seats [B], chunk, pooled) -> (h [B, size, D], layers, pooled): the understanding layers, once
        for every choice of packs; the layers are donated. A chunk is as in `engine.chunks`."""

        def args() -> tuple[Any, ...]:
            pooled = jax.eval_shape(partial(empty_pool, rows, self.config.d_model))
            return self._params, self._layers, _ints(rows), chunk_shape(size, rows), pooled

        def run(params: Base, layers: Any, seats: jax.Array, chunk: jax.Array, pooled: Pooled) -> Any:
            tokens, weights, start, _ = parts_of(chunk)
            return understood(params, layers, start, seats, tokens, weights, pooled)

        understood = partial(understand_chunk, config=self.config, lanes=self.lanes)
        return self._program(_name("understand", size, rows), run, (1,), args)

    def fuse(self, size: int, n_packs: int, rows: int = 1) -> jax.stages.Compiled:
        """(params, mix, cache, seats [B], h [B, size, D], chunk) -> (h [B, D], cache); the cache is donated."""

        def args() -> tuple[Any, ...]:
            self.understand(size, rows)
            h = self._taps[_name("understand", size, rows)]
            return *self._state(n_packs, rows), h, chunk_shape(size, rows)

        def step(params: Base, mix: Mix, cache: Cache, h: jax.Array, chunk: jax.Array, *, config: ModelConfig) -> Any:
            _, _, start, n_valid = parts_of(chunk)
            return fuse_chunk(params, mix, cache, h, n_valid, start, config=config)

        return self._program(_name(f"fuse{n_packs}", size, rows), self._seated(step), (2,), args)

    def whole(self, size: int, n_packs: int, rows: int = 1) -> jax.stages.Compiled:
        """(params, mix, cache, seats [B], chunk) -> (h [B, D], cache): both phases, for packs that have a part in the
        understanding layers."""

        def args() -> tuple[Any, ...]:
            return *self._state(n_packs, rows), chunk_shape(size, rows)

        def step(params: Base, mix: Mix, cache: Cache, chunk: jax.Array, *, config: ModelConfig) -> Any:
            tokens, _, start, n_valid = parts_of(chunk)
            return prefill_chunk(params, mix, cache, tokens, n_valid, start, config=config)

        return self._program(_name(f"prefill{n_packs}", size, rows), self._seated(step), (2,), args)

    def choose(self, rows: int = 1) -> jax.stages.Compiled:
        """(params, h [B, D], cache without layers, board, live [B]) -> (token [B], board); the board is donated."""

        def args() -> tuple[Any, ...]:
            h = jax.ShapeDtypeStruct((rows, self.config.d_model), self._params.embed.dtype)
            return self._params, h, Cache((), _ints(self.lanes), seats=_ints(rows)), self._board, _ints(rows)

        return self._program(_name("choose", 1, rows), partial(choose, config=self.config), (3,), args)

    def take_seat(self) -> jax.stages.Compiled:
        """(length [N], board, seat [], n_prompt [], one) -> (length, board), see `core.decode.take_seat`; both are
        donated."""

        def args() -> tuple[Any, ...]:
            one = jax.eval_shape(lambda: new_board([(Sampling(), [])], self.config.vocab_size).sampling)
            return _ints(self.lanes), self._board, _ints(), _ints(), one

        return self._program("take_seat", take_seat, (0, 1), args)

    def decode(self, n_packs: int, rows: int = 1) -> jax.stages.Compiled:
        """(params, mix, cache, seats [B], board, live [B]) -> (token [B], cache, board); cache and board are donated."""

        def args() -> tuple[Any, ...]:
            return *self._state(n_packs, rows), self._board, _ints(rows)

        return self._program(_name(f"decode{n_packs}", 1, rows), self._seated(decode), (2, 4), args)

    def burst(self, n_packs: int, rows: int = 1) -> jax.stages.Compiled:
        """As `decode`, BURST steps at once: tokens int32 [BURST, B]."""

        def args() -> tuple[Any, ...]:
            return *self._state(n_packs, rows), self._board, _ints(rows)

        fn = self._seated(partial(decode_many, n_steps=BURST))
        return self._program(_name(f"decode{n_packs}_burst", 1, rows), fn, (2, 4), args)

    def verify(self, n_packs: int) -> jax.stages.Compiled:
        """(params, mix, cache, seats [1], board, draft [1, DRAFT]) -> as `core.decode.verify`; cache and board are
        donated."""

        def args() -> tuple[Any, ...]:
            return *self._state(n_packs, 1), self._board, _ints(1, DRAFT)

        return self._program(f"verify{n_packs}", self._seated(verify), (2, 4), args)

    def begin(self) -> None:
        """Compiles what nearly every answer runs. To be done before the weights are read: of all programs these cost
        the compiler most, more than half of what a small base weighs."""
        self.choose()
        self.decode(0)

    def row_counts(self) -> list[int]:
        """The numbers of rows that steps are compiled for."""
        return [n for n in (1, 2, 4, 8, MOST_LANES) if n < self.lanes] + [self.lanes]

    def pack_counts(self, rows: int, installed: int) -> list[int]:
        """The numbers of packs that steps of so many rows are compiled for, where so many are installed."""
        most = min(MAX_ACTIVE * rows, installed, MOST_PACKS)
        if rows == 1 or self.expert is not None:
            return list(range(most + 1))
        return sorted({0, *(n for n in (2, 4) if n < most), most})

    def warm_up(self, installed: int, *, drafts: bool = False) -> Iterator[str]:
        """Compiles all that an engine of these lanes may ever run with so many packs; names each."""
        sizes = [size for size in prefill_sizes(self.lanes) if size <= self.capacity]
        self.new_expert()
        for size in sizes:
            self.understand(size)
            yield f"prefill of {size}"
            for n_packs in self.pack_counts(1, installed):
                takes_all = self.rereads and n_packs > 0
                (self.whole if takes_all else self.fuse)(size, n_packs)
        self.take_seat()
        self.choose()
        for rows in self.row_counts():
            for n_packs in self.pack_counts(rows, installed):
                yield f"steps of {rows} with {n_packs} packs"
                self.decode(n_packs, rows)
                if self.bursts:
                    self.burst(n_packs, rows)
        for n_packs in self.pack_counts(1, installed) if drafts and self.capacity > DRAFT else ():
            self.verify(n_packs)

    def base_bytes(self) -> int:
        return tree_bytes(self._params)

    def kv_bytes(self) -> int:
        """Keys and values of the base, all lanes, and their lengths."""
        return tree_bytes(self._layers) + 4 * self.lanes

    def expert_bytes(self) -> int:
        """Keys and values of one pack's expert, all lanes."""
        return tree_bytes(self._own)

    def tap_bytes(self) -> int:
        """Tap states: those a cache keeps for experts, and those of prompts between their two phases."""
        width = self.config.d_model * jnp.dtype(self._params.embed.dtype).itemsize
        return tree_bytes(self._tap) + self.lanes * self.capacity * width

    def board_bytes(self) -> int:
        return tree_bytes(self._board)

    def pack_bytes(self) -> int:
        """One pack on the device."""
        return tree_bytes(self._pack)

    def temporary_bytes(self) -> dict[str, int]:
        """Bytes that each program compiled so far allocates while it runs, handlers' scratch among them, by XLA's own
        analysis."""
        for name, program in list(self._compiled.items()):
            if name not in self._temporaries:  # the analysis takes 30 ms, and every answer reports memory
                analysis = program.memory_analysis()
                self._temporaries[name] = 0 if analysis is None else int(analysis.temp_size_in_bytes)
        return dict(self._temporaries)

    def most_temporary_bytes(self) -> int:
        """What may be alive at once: one prefill, and two steps of which one waits behind the other. Accelerators give it
        out in the order of their stream, so that all programs have it in turn."""
        found = self.temporary_bytes()
        if jax.default_backend() != "cpu":
            return max(found.values(), default=0)
        steps = {name: size for name, size in found.items() if name.startswith(("decode", "verify", "choose"))}
        rest = [size for name, size in found.items() if name not in steps]
        return max(rest, default=0) + 2 * max(steps.values(), default=0)

    def _state(self, n_packs: int, rows: int) -> tuple[Any, ...]:
        """What every step takes: params, mix, cache and seats, as shapes."""
        mix = Mix((self._pack,) * n_packs, _floats(rows, n_packs))
        return self._params, mix, Cache(self._layers, _ints(self.lanes), (self._own,) * n_packs, self._tap), _ints(rows)

    def _seated(self, step: Any) -> Any:
        """A step whose seats are an argument of their own: the cache is donated, and they are used again."""

        def seated(params: Base, mix: Mix, cache: Cache, seats: jax.Array, *rest: Any) -> Any:
            found = step(params, mix, dataclasses.replace(cache, seats=seats), *rest, config=self.config)
            return tuple(dataclasses.replace(x, seats=None) if isinstance(x, Cache) else x for x in found)

        return seated

    def _program(
        self, name: str, fn: Any, donated: tuple[int, ...], args: Callable[[], tuple[Any, ...]]
    ) -> jax.stages.Compiled:
        with self._lock:  # warming up and requests may ask for the same one
            if name not in self._compiled:
                bound = partial(fn)
                bound.__name__ = name  # pyright: ignore[reportAttributeAccessIssue] - the name that profiles show
                lowered = jax.jit(bound, donate_argnums=donated).lower(*args())
                if name.startswith("understand"):
                    self._taps[name] = lowered.out_info[0]
                self._compiled[name] = lowered.compile(compiler_options=_compiler_options())
                return_free_memory()
            return self._compiled[name]


def _compiler_options() -> dict[str, Any] | None:
    """Products that read the same input stay apart on a graphics card: XLA would put their weights side by side at
    every call, which costs more than it saves."""
    return {"xla_gpu_dot_merger_threshold_mb": 0} if jax.default_backend() == "gpu" else None


def _name(kind: str, size: int, rows: int) -> str:
    return kind + (f"_{size}" if size > 1 else "") + (f"_x{rows}" if rows > 1 else "")


def _reads_from_start(pack: Pack | Slot, tap: int) -> bool:
    """Whether a pack has a part in the understanding layers, as an imported adapter may."""
    if isinstance(pack, Slot):
        return any(pack.layout.maps[:tap])
    return pack.lora is not None and any(layer is not None for layer in pack.lora.layers[:tap])


def _expert_config(pack: Pack | Slot) -> ModelConfig | None:
    if isinstance(pack, Slot):
        return pack.layout.expert
    return pack.expert.config if pack.expert is not None else None


def _ints(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _floats(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.float32)
