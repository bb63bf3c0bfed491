"""`mbjax chat`."""

import contextlib
from typing import Annotated

import typer

from mbjax.cli import options
from mbjax.cli.base import load_engine
from mbjax.cli.options import DEFAULT_BASE
from mbjax.cli.output import note, note_memory, note_reply, print_pieces, show_notes
from mbjax.errors import InputError


def chat(
    base: options.BaseOption = DEFAULT_BASE,
    pack: options.PackOption = "auto",
    packs: options.PacksOption = None,
    force_base: options.ForceOption = False,
    dtype: options.DtypeOption = "auto",
    kv_dtype: options.KvOption = "auto",
    context: options.ContextOption = None,
    budget: options.BudgetOption = None,
    max_tokens: options.TokensOption = 512,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="A system message.")] = None,
    temperature: options.TemperatureOption = 0.0,
    top_k: options.TopKOption = 0,
    top_p: options.TopPOption = 1.0,
    min_p: options.MinPOption = 0.0,
    repetition_penalty: options.PenaltyOption = 1.0,
    seed: options.SeedOption = 0,
    stop: options.StopOption = None,
) -> None:
    """Chat in the terminal, with route, gates, speed and memory after each answer. Ctrl-C stops an answer."""
    from mbjax.core.sampling import Sampling
    from mbjax.engine.conversation import Conversation

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
    engine = load_engine(base, dtype, context, packs, force_base, kv_dtype, budget)
    conversation = Conversation(engine, system, pack)
    note("/reset forgets the conversation, /exit (or Ctrl-D) ends it, Ctrl-C stops an answer")
    while (text := _read()) is not None:
        if text == "/reset":
            conversation.reset()
            note("the conversation is forgotten")
            continue
        try:
            stream = conversation.ask(text, max_tokens=max_tokens, sampling=sampling, stop=stop or ())
        except InputError as error:  # this turn does not fit; the chat goes on
            note(f"mbjax: {error}")
            continue
        pieces: list[str] = []
        try:
            print_pieces(stream, pieces)
        except KeyboardInterrupt:
            stream.close()
            print()
        conversation.answered("".join(pieces))
        if stream.tokens:
            reply = stream.reply("".join(pieces))
            note_reply(reply)
            note_memory(reply.memory)
        show_notes(engine)
    engine.close()


def _read() -> str | None:
    """The next line that says something, None at the end."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing and history
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return None
        if text == "/exit":
            return None
        if text:
            return text
