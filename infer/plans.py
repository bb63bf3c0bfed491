"""What bases of known shapes need with two packs in use, from shapes alone: no weights are read or allocated.

    python infer/plans.py [--context 8192] [--dtypes bfloat16,int8] [--bases NAME,...] [--json] [--write]

Packs are low-rank 16 on all maps of the fusion layers. resident: base, router and one pack. arrays: what any device
holds between two steps. in use: all that this machine's process holds, with its programs' temporaries, which for
bfloat16 on a CPU are mostly XLA's float32 copies of the weights; docs/card.md has an accelerator's.
"""

import dataclasses
from typing import Any

from report import parser, publish, table

from mbjax.core.config import ModelConfig, RopeScaling
from mbjax.core.fused import bundled
from mbjax.core.lora import declare_lora
from mbjax.core.pack import Pack
from mbjax.core.param import abstract_params
from mbjax.core.slots import layout_for
from mbjax.engine.account import Account, Sizing, sized
from mbjax.engine.compile_cache import use_compile_cache
from mbjax.engine.pack_form import PackForm
from mbjax.engine.plan import Planned
from mbjax.engine.programs import kv_dtype_of
from mbjax.io.base_forms import abstract_base, base_forms

SLOTS, RANK, ROUTER = 2, 16, 6_000_000
ARRAYS = ("base", "router", "packs", "kv", "experts", "tap states", "sampling")
NOTE = """resident: base, router and one pack. arrays: what any device
holds between two steps. in use: all that a process on this CPU holds, with its programs' temporaries, which for
bfloat16 are mostly XLA's float32 copies of the weights. [A 4 GB card](card.md) has what an accelerator holds,
[memory in use](in_use.md) what a process with SmolLM2-135M really held.

"""
QWEN = ModelConfig(
    n_layers=24, d_model=896, n_heads=14, n_kv_heads=2, head_dim=64, d_ff=4864, vocab_size=151_936,
    max_context=32_768, rope_theta=1e6, qkv_bias=True,
)  # fmt: skip
SHAPES = {
    "SmolLM2-135M": ModelConfig(
        n_layers=30, d_model=576, n_heads=9, n_kv_heads=3, head_dim=64, d_ff=1536, vocab_size=49_152,
        max_context=8192, rope_theta=1e5,
    ),
    "Qwen2.5-0.5B": QWEN,
    "Qwen3-0.6B": dataclasses.replace(
        QWEN, n_layers=28, d_model=1024, n_heads=16, n_kv_heads=8, head_dim=128, d_ff=3072, qkv_bias=False, qk_norm=True
    ),
    "Llama-3.2-1B": ModelConfig(
        n_layers=16, d_model=2048, n_heads=32, n_kv_heads=8, head_dim=64, d_ff=8192, vocab_size=128_256,
        max_context=131_072, rope_theta=5e5, rope_scaling=RopeScaling("llama3", factor=32.0),
    ),
}  # fmt: skip


def account_of(config: ModelConfig, dtype: str, kv_dtype: str, context: int) -> Account:
    params = bundled(abstract_base(config, base_forms(config, dtype, {})), config)
    pack = Pack(lora=abstract_params(declare_lora(config, RANK, float(RANK))))
    form = PackForm(layout_for([pack], config))
    planned = Planned.of(params, config, form, context, 1, kv_dtype_of(params, kv_dtype))
    for _ in planned.programs.warm_up(SLOTS):
        pass
    return sized(planned.programs, form, Sizing(SLOTS, SLOTS), ROUTER, None, context)


def row(name: str, dtype: str, kv_dtype: str, context: int) -> dict[str, Any]:
    account = account_of(SHAPES[name], dtype, kv_dtype, context)
    parts = account.components
    resident = parts["base"] + parts["router"] + parts["packs"] // SLOTS
    return {"base": name, "dtype": dtype, "kv_dtype": kv_dtype, "context": context, "resident": resident,
            "arrays": sum(parts[name] for name in ARRAYS), "total": account.total, "components": parts}  # fmt: skip


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--context", type=int, default=8192)
    command.add_argument("--dtypes", default="bfloat16,int8")
    command.add_argument("--bases", default=",".join(SHAPES))
    options = command.parse_args()
    use_compile_cache()
    rows = []
    for name in options.bases.split(","):
        for dtype in options.dtypes.split(","):
            for kv_dtype in ("bfloat16", "int8") if dtype != "bfloat16" else ("bfloat16",):
                rows.append(row(name, dtype, kv_dtype, options.context))
    keys = ("base", "packs", "kv", "tap states", "temporaries", "programs", "tokenizer and modules")
    lines = [
        (found["base"], found["dtype"], found["kv_dtype"], *(f"{found['components'][key] / 1e6:.0f}" for key in keys),
         *(f"{found[key] / 1e6:.0f}" for key in ("resident", "arrays", "total")))
        for found in rows
    ]  # fmt: skip
    head = ("base", "weights", "KV", "base MB", *keys[1:], "resident", "arrays", "in use")
    text = f"Context {options.context}, {SLOTS} packs, one lane; MB of 10^6 bytes. " + NOTE + table(head, lines)
    publish(options, {"rows": rows}, "What bases of known shapes need", text, "plans.md")


if __name__ == "__main__":
    main()
