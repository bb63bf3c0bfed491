"""The rates that everything else is a share of: memory, matrix products, and transfers to the device."""

import statistics as stats
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from card_cells import Cell
from card_child import Notes

REPEATS = 15
PACKS = (12_000_000, 64_000_000)  # bytes of a transfer


def measure(cell: Cell, notes: Notes) -> None:
    scale = cell.scale
    notes.put(memory=_tried(lambda: memory_rates(scale.rate_bytes)))
    notes.put(matrix={str(n): _tried(lambda n=n: matrix_rate(n)) for n in scale.matrices})
    sizes = PACKS if not cell.shape else (100_000,)
    notes.put(to_device={str(n): _tried(lambda n=n: transfer_rates(n)) for n in sizes})


def _tried(measured: Callable[[], Any]) -> Any:
    try:
        return measured()
    except Exception as error:  # noqa: BLE001 - each rate is a result of its own
        return {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300]}"}


def seconds_of(run: Callable[[], Any], inner: int = 1) -> float:
    """Median seconds of one call; `inner` calls are queued before the wait, so that launches hide behind work."""
    jax.block_until_ready(run())
    seconds = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        for _ in range(inner):
            out = run()
        jax.block_until_ready(out)
        seconds.append((time.perf_counter() - begin) / inner)
    return stats.median(seconds)


def memory_rates(n_bytes: int) -> dict[str, Any]:
    """Bytes per second: `read` of a sum over rows, `copy` of reading and writing as much."""
    x = jnp.ones((n_bytes // 2 // 1024, 1024), jnp.bfloat16)

    @jax.jit
    def total(x: jax.Array) -> jax.Array:
        return x.astype(jnp.float32).sum(axis=1)

    @jax.jit
    def copy(x: jax.Array) -> jax.Array:
        return x + jnp.bfloat16(1)

    return {"bytes": x.nbytes, "read": x.nbytes / seconds_of(lambda: total(x), 10),
            "copy": 2 * x.nbytes / seconds_of(lambda: copy(x), 5)}  # fmt: skip


def matrix_rate(n: int) -> dict[str, Any]:
    """Floating-point operations per second of a product of two random bfloat16 matrices of side n."""
    a, b = (jax.random.normal(jax.random.key(i), (n, n), jnp.bfloat16) for i in range(2))
    product = jax.jit(lambda a, b: a @ b)
    return {"flops": 2 * n**3 / seconds_of(lambda: product(a, b), 10)}


def transfer_rates(n_bytes: int) -> dict[str, Any]:
    """Bytes per second to the device: from an array of numpy, and from page-locked memory that JAX holds."""
    host = np.random.default_rng(0).standard_normal(n_bytes // 4, np.float32)
    device = jax.devices()[0]
    found = {"numpy": host.nbytes / seconds_of(lambda: jax.device_put(host, device))}
    kinds = [memory.kind for memory in device.addressable_memories()]
    if "pinned_host" in kinds:
        pinned = jax.device_put(host, jax.sharding.SingleDeviceSharding(device, memory_kind="pinned_host"))
        there = jax.sharding.SingleDeviceSharding(device, memory_kind="device")
        if "device" in kinds:
            found["pinned"] = host.nbytes / seconds_of(lambda: jax.device_put(pinned, there))
            found["pinned_queued"] = host.nbytes / seconds_of(lambda: jax.device_put(pinned, there), 8)
    return found
