"""What training a base needs on so many accelerators: bytes per device from the sharded shapes, and step time from a
stated roofline. Nothing is allocated and no accelerator is needed.

    python infer/base_plan.py [--config configs/base/base-0.5b.toml] [--length 2048] [--devices 1,8,64] [--json] [--write]

Bytes: parameters, moments and gradients from the shapes and shardings that `mbjax train base` uses; activations from
what a layer keeps under remat = maps (the outputs of its seven maps and the state between layers, in bfloat16), logits
from the chunk that the loss holds. Time: the largest of arithmetic, device memory and links, each at its stated peak;
expected is the same with the arithmetic at a stated share of its peak.
"""

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from report import parser, publish, table

from mbjax.core.base_train import AXES, BaseState, declare_stacked, new_base, shardings, state_shardings
from mbjax.core.config import ModelConfig
from mbjax.core.lora import map_shapes
from mbjax.training.base_config import BaseConfig, read_base_config
from mbjax.training.base_loop import ACCELERATOR_LOGIT_BYTES
from mbjax.training.flops import flops_per_token, matrix_sizes
from mbjax.training.optimiser import make_base_optimiser

PAGE = "base_training.md"
PER_HOST = 8
ROWS_AT_ONCE = 8  # of one device; a step's other rows are accumulated


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Peaks of one accelerator and its links: an H100 SXM, NVLink within a host, 400 Gbit/s per card between hosts."""

    flops: float = 989e12  # dense bfloat16
    memory: float = 3.35e12  # bytes/s
    host_link: float = 450e9  # bytes/s, one direction
    network: float = 50e9
    share: float = 0.4  # of the arithmetic peak that a step is expected to reach


def plan(config: BaseConfig, length: int, n: int, roof: Roofline) -> dict[str, Any]:
    """One row of the table: n devices, fsdp within a host and data over hosts."""
    fsdp = min(n, PER_HOST)
    model, mesh = config.model, jax.sharding.AbstractMesh((n // fsdp, fsdp, 1), AXES)
    rows = config.loop.rows // n
    if rows * n != config.loop.rows or n % fsdp:
        sys.exit(f"{config.loop.rows} rows cannot be spread over {n} devices")
    at_once = max(d for d in range(1, min(ROWS_AT_ONCE, rows) + 1) if rows % d == 0)
    size = _bytes(config, model, mesh, at_once * length, length)
    return {
        "devices": n,
        "mesh": f"data {n // fsdp} x fsdp {fsdp}",
        "accumulate": rows // at_once,
        "bytes": size,
        "total_bytes": sum(size.values()),
    } | _seconds(model, n, fsdp, rows, at_once, length, size, roof)


def _bytes(config: BaseConfig, model: ModelConfig, mesh: Any, tokens: int, length: int) -> dict[str, int]:
    """Bytes of one device, by what they are."""
    params = jax.eval_shape(lambda: new_base(model, np.uint32(0)))
    optimiser = make_base_optimiser(config.optimiser, config.loop.steps, declare_stacked(model))
    state = BaseState(params, jax.eval_shape(optimiser.init, params), jax.ShapeDtypeStruct((), "int32"))  # pyright: ignore[reportArgumentType]
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = state_shardings(state, shardings(model, mesh), whole)
    held = lambda tree, where: sum(
        math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
        for x, s in zip(jax.tree.leaves(tree), jax.tree.leaves(where), strict=True)
    )
    own = held(params, placed.params)
    kept = sum(n_out for n_out, _ in map_shapes(model).values()) + model.d_model
    layer = sum(n_out * n_in for n_out, n_in in map_shapes(model).values())
    table_size = model.vocab_size * model.d_model
    return {
        "parameters": own,
        "moments": held(state.optimiser, placed.optimiser),
        "gradients": own,
        "bfloat16 copy": own // 2,
        "gathered": 2 * (2 * layer + table_size),  # the layer in use, the next one, and the table of both ends
        "table's gradient": 4 * table_size,
        "activations": 2 * tokens * kept * model.n_layers,
        "attention weights of a layer": 3 * 4 * tokens * length * model.n_heads,
        "logits": 2 * ACCELERATOR_LOGIT_BYTES,
    }


def _seconds(
    model: ModelConfig, n: int, fsdp: int, rows: int, at_once: int, length: int, size: dict[str, int], roof: Roofline
) -> dict[str, float]:
    """Of one step: each side of the roofline, and what to expect."""
    tokens, parts = rows * length, rows // at_once
    arithmetic = tokens * flops_per_token(model, length) / roof.flops
    state = size["parameters"] + size["moments"]
    memory = (3 * state + parts * (3 * size["activations"] + 6 * matrix_sizes(model)[0])) / roof.memory
    weights, inside = 2 * matrix_sizes(model)[0], (fsdp - 1) / fsdp
    links = parts * inside * (2 * weights + 2 * weights) / roof.host_link  # gathered twice; gradients in float32 once
    hosts = n // fsdp
    between = 2 * (hosts - 1) / hosts * size["gradients"] / roof.network
    bound = max(arithmetic, memory, links + between)
    expected = max(arithmetic / roof.share, memory, links + between)
    return {
        "arithmetic_s": arithmetic,
        "memory_s": memory,
        "links_s": links + between,
        "bound_s": bound,
        "expected_s": expected,
        "expected_tokens_per_s": n * tokens / expected,
    }


def page(config: BaseConfig, plans: list[dict[str, Any]], length: int, roof: Roofline) -> str:
    """The text of docs/base_training.md."""
    model = config.model
    total, products = matrix_sizes(model)
    head = ["MB of 10^6 bytes, per device", *(f"{p['devices']}" for p in plans)]
    megabytes = lambda n: f"{n / 1e6:,.0f}"
    lines = [["mesh", *(p["mesh"] for p in plans)], ["accumulate", *(p["accumulate"] for p in plans)]]
    lines += [[name, *(megabytes(p["bytes"][name]) for p in plans)] for name in plans[0]["bytes"]]
    lines.append(["total", *(megabytes(p["total_bytes"]) for p in plans)])
    times = [[key, *(f"{p[key + '_s']:.2f}" for p in plans)] for key in ("arithmetic", "memory", "links", "bound")]
    times.append([f"expected, {roof.share:.0%} of the arithmetic peak", *(f"{p['expected_s']:.2f}" for p in plans)])
    times.append(["tokens/s expected", *(f"{p['expected_tokens_per_s']:,.0f}" for p in plans)])
    days = [config.loop.steps * p["expected_s"] / 86400 for p in plans]
    times.append([f"days for {config.loop.steps:,} steps", *(f"{d:.1f}" for d in days)])
    return (
        f"{config.name}: {total:,} parameters ({products:,} of them multiply a token), steps of {config.loop.rows} rows"
        f" of {length} tokens. Computed from shapes, measured on nothing.\n\n"
        + table(head, lines)
        + "\nRoofline of one device: "
        + f"{roof.flops / 1e12:.0f} TFLOP/s (bfloat16), {roof.memory / 1e12:.2f} TB/s of memory, "
        + f"{roof.host_link / 1e9:.0f} GB/s within a host of {PER_HOST}, {roof.network / 1e9:.0f} GB/s between hosts.\n\n"
        + table(["seconds of a step", *head[1:]], times)
    )


def main() -> None:
    made: argparse.ArgumentParser = parser(__doc__)
    made.add_argument("--config", type=Path, default=Path("configs/base/base-0.5b.toml"))
    made.add_argument("--length", type=int, default=2048)
    made.add_argument("--devices", default="1,8,64")
    options = made.parse_args()
    config, roof = read_base_config(options.config), Roofline()
    plans = [plan(config, options.length, int(n), roof) for n in options.devices.split(",")]
    result = {"plans": plans, "roofline": dataclasses.asdict(roof)}
    publish(options, result, "Training a base", page(config, plans, options.length, roof), PAGE)


if __name__ == "__main__":
    main()
