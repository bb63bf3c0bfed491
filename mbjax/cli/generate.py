"""`mbjax generate`."""

import sys
from typing import Annotated

import typer

from mbjax.cli import options
from mbjax.cli.base import load_engine
from mbjax.cli.options import DEFAULT_BASE
from mbjax.cli.output import note_reply, print_json, print_pieces, show_notes


def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt; '-' reads it from standard input.")],
    base: options.BaseOption = DEFAULT_BASE,
    pack: options.PackOption = "auto",
    packs: options.PacksOption = None,
    force_base: options.ForceOption = False,
    dtype: options.DtypeOption = "auto",
    kv_dtype: options.KvOption = "auto",
    context: options.ContextOption = None,
    budget: options.BudgetOption = None,
    max_tokens: options.TokensOption = 256,
    raw: options.RawOption = False,
    temperature: options.TemperatureOption = 0.0,
    top_k: options.TopKOption = 0,
    top_p: options.TopPOption = 1.0,
    min_p: options.MinPOption = 0.0,
    repetition_penalty: options.PenaltyOption = 1.0,
    seed: options.SeedOption = 0,
    stop: options.StopOption = None,
    as_json: options.JsonOption = False,
) -> None:
    """Answer one prompt."""
    from mbjax.core.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    text = sys.stdin.read() if prompt == "-" else prompt
    engine = load_engine(base, dtype, context, packs, force_base, kv_dtype, budget)
    stream = engine.stream(text, pack=pack, max_tokens=max_tokens, sampling=sampling, stop=stop or (), raw=raw)
    if as_json:
        print_json(stream.reply("".join(stream)).to_json())
    else:
        note_reply(stream.reply(print_pieces(stream)))
    show_notes(engine)
    engine.close()
