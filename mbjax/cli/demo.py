"""`mbjax demo`."""

from mbjax.cli.base import load_engine
from mbjax.cli.options import DEFAULT_BASE
from mbjax.cli.output import bytes_table, note_reply, print_pieces, print_table, show_notes


def demo() -> None:
    """Fetch the default base if it is missing, let the router choose packs for some prompts, and answer them."""
    from mbjax.engine.demo import DEMO_PROMPTS, DEMO_TOKENS

    engine = load_engine(DEFAULT_BASE, "auto", None)
    for prompt in DEMO_PROMPTS:
        print(f"> {prompt}")
        stream = engine.stream(prompt, max_tokens=DEMO_TOKENS)
        note_reply(stream.reply(print_pieces(stream)))
        show_notes(engine)
        print()
    memory = engine.memory()
    print_table(bytes_table(memory.components, memory.peak, memory.budget))
