"""`mbjax bench`."""

from typing import Annotated

import typer

from mbjax.cli import options
from mbjax.cli.base import load_engine
from mbjax.cli.options import DEFAULT_BASE
from mbjax.cli.output import bytes_table, print_json, print_table, progress_bar


def bench(
    base: options.BaseOption = DEFAULT_BASE,
    pack: options.PackOption = "none",
    packs: options.PacksOption = None,
    force_base: options.ForceOption = False,
    dtype: options.DtypeOption = "auto",
    kv_dtype: options.KvOption = "auto",
    context: options.ContextOption = None,
    budget: options.BudgetOption = None,
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", "-p", help="Tokens of the prefill.")] = 512,
    decode_tokens: Annotated[int, typer.Option("--decode-tokens", "-n", help="Tokens to decode.")] = 128,
    repeats: Annotated[int, typer.Option("--repeats", "-r", help="Runs; the median counts.")] = 3,
    as_json: options.JsonOption = False,
) -> None:
    """Measure prefill and decode tokens/s, the share of the memory bandwidth, and memory."""
    engine = load_engine(base, dtype, context, packs, force_base, kv_dtype, budget)
    from mbjax.engine.bench import bench as run

    with progress_bar("measuring") as report:
        result = run(
            engine,
            prompt_tokens=prompt_tokens,
            decode_tokens=decode_tokens,
            repeats=repeats,
            pack=pack,
            progress=report,
        )
    if as_json:
        print_json(result.to_json())
        return
    print(f"prefill of {prompt_tokens}: {result.prefill_tok_s:.1f} tokens/s")
    print(f"decoding {decode_tokens}: {result.decode_tok_s:.1f} tokens/s")
    share = f"{result.bandwidth_share:.0%} of the {result.bandwidth / 1e9:.1f} GB/s that this device reads"
    print(f"bandwidth: {share}")
    print(f"compiled CPU kernels: {result.kernels or 'none, XLA alone'}")
    print_table(bytes_table(result.memory.components, result.memory.peak, result.memory.budget))
