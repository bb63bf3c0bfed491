"""Bases of real shapes with random weights, their packs and programs, and what the allocator says: for `card.py`."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from plans import RANK, ROUTER

from mbjax.core.base import Base, declare
from mbjax.core.config import ModelConfig
from mbjax.core.lora import declare_lora
from mbjax.core.pack import Pack
from mbjax.core.param import Param, abstract_params, is_param
from mbjax.core.quant import QTensor, Scheme, abstract, for_accelerator
from mbjax.core.quantize import RULES, quantize_weight, scheme_of
from mbjax.core.slots import layout_for
from mbjax.engine.account import capacity_for
from mbjax.engine.pack_form import PackForm
from mbjax.engine.programs import Programs, kv_dtype_of, prefill_sizes

SLOTS = 2  # packs that are in use
ROUTER_BYTES = ROUTER


def base_shapes(config: ModelConfig, dtype: str) -> Base:
    """The base as shapes and dtypes, quantised weights in the plain layout, as accelerators take them."""

    def one(path: Any, p: Param) -> Any:
        scheme = _scheme(path, p, dtype)
        if scheme is not None:
            return for_accelerator(abstract((p.shape[0], p.shape[1]), scheme, tiled=False))
        return jax.ShapeDtypeStruct(p.shape, _float_dtype(p, dtype))

    return jax.tree.map_with_path(one, declare(config), is_leaf=is_param)


def random_base(config: ModelConfig, dtype: str) -> Base:
    """That base on the device: matrices normal with deviation 0.02, norms 1, biases 0.

    Each shape is drawn and quantised once and by the CPU: what the device's allocator says is then of running alone.
    """
    rng, drawn = np.random.default_rng(0), {}

    def one(path: Any, p: Param) -> Any:
        scheme = _scheme(path, p, dtype)
        if (p.shape, scheme, p.init) not in drawn:
            drawn[p.shape, scheme, p.init] = _drawn(rng, p, scheme, dtype)
        return jax.tree.map(jax.device_put, drawn[p.shape, scheme, p.init])

    return jax.tree.map_with_path(one, declare(config), is_leaf=is_param)


def _drawn(rng: np.random.Generator, p: Param, scheme: Scheme | None, dtype: str) -> np.ndarray | QTensor:
    if len(p.shape) < 2:
        return np.full(p.shape, float(p.init.__name__ == "ones"), _float_dtype(p, dtype))
    values = 0.02 * rng.standard_normal(p.shape, np.float32)
    if scheme is None:
        return values.astype(_float_dtype(p, dtype))
    with jax.default_device(jax.devices("cpu")[0]):
        return jax.tree.map(np.asarray, for_accelerator(quantize_weight(jnp.asarray(values), scheme)))


def _scheme(path: Any, p: Param, dtype: str) -> Scheme | None:
    quantised = dtype in RULES and len(p.shape) == 2 and p.dtype is None
    return scheme_of(jax.tree_util.keystr(path), RULES[dtype]) if quantised else None


def _float_dtype(p: Param, dtype: str) -> Any:
    wanted = p.dtype or ("float32" if dtype in RULES else dtype)
    return np.dtype(ml_dtypes.bfloat16) if wanted == "bfloat16" else np.dtype(wanted)


def pack_form(config: ModelConfig) -> PackForm:
    """Of low-rank packs of rank 16 on all maps of the fusion layers."""
    return PackForm(layout_for([Pack(lora=abstract_params(declare_lora(config, RANK, float(RANK))))], config))


def pack_buffers(form: PackForm, n: int) -> list[np.ndarray]:
    """The slots' buffers of n random packs, in host memory."""
    rng = np.random.default_rng(2)
    return [0.01 * rng.standard_normal(form.layout.n_values(), np.float32) for _ in range(n)]


def programs_for(config: ModelConfig, params: Base, form: PackForm, lanes: int, context: int) -> Programs:
    """As the engine has them; `params` may be shapes."""
    capacity, kv = capacity_for(context, lanes), kv_dtype_of(params)
    return Programs(params, config, form.shapes(), lanes=lanes, capacity=capacity, kv_dtype=kv)


def compile_needed(
    programs: Programs, form: PackForm, prompts: tuple[int, ...], drafts: bool = False
) -> dict[str, float]:
    """Seconds by program, of all that a measurement with prompts of so many tokens runs: what is compiled only later
    adds to the allocator's peak what the compiler tries out on the device.

    The largest chunk, the longest draft and all lanes at once need the most temporaries: of the other programs of an
    engine none changes the account.
    """
    lanes, seconds = programs.lanes, {}
    cut = {size for prompt in prompts for size in _cut(prompt, lanes)}
    sizes = sorted({size for size in prefill_sizes(lanes) if size <= programs.capacity} & cut)
    jobs: list[tuple[str, Any]] = [("take_seat", programs.take_seat), ("choose", programs.choose)]
    for size in sizes:
        jobs.append((f"understand {size}", lambda size=size: programs.understand(size)))
        jobs += [(f"fuse {size}, {n} packs", lambda s=size, n=n: programs.fuse(s, n)) for n in range(SLOTS + 1)]
    jobs += [(f"decode {n} packs", lambda n=n: programs.decode(n, lanes)) for n in range(SLOTS + 1)]
    if programs.bursts:
        jobs += [(f"bursts with {n} packs", lambda n=n: programs.burst(n, lanes)) for n in range(SLOTS + 1)]
    if drafts:
        jobs.append(("verify", lambda: programs.verify(SLOTS)))
    for name, job in jobs:
        begin = time.perf_counter()
        job()
        seconds[name] = time.perf_counter() - begin
    return seconds


def _cut(prompt: int, lanes: int) -> list[int]:
    from mbjax.core.decode import chunk_sizes

    return chunk_sizes(prompt, prefill_sizes(lanes))


def statistics() -> dict[str, int | None]:
    """Bytes by the device's allocator: in use, the most that ever were, and its limit; None where it keeps none."""
    found = jax.devices()[0].memory_stats() or {}
    return {name: found.get(name) for name in ("bytes_in_use", "peak_bytes_in_use", "bytes_limit")}


_watchers: list[list[str]] = []
_listening: list[bool] = []


def _heard(event: str, duration_secs: float, **kwargs: str | int) -> None:
    if event == "/jax/core/compile/backend_compile_duration":
        for own in _watchers:
            own.append(event)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The compilations inside the block: one entry for each program that was compiled or read from the cache."""
    if not _listening:
        jax.monitoring.register_event_duration_secs_listener(_heard)
        _listening.append(True)
    seen: list[str] = []
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)
