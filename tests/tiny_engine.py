"""An engine on random weights with one token per byte."""

import dataclasses
from pathlib import Path

from tiny import PLAIN, random_base
from tiny_text import byte_tokenizer

from mbjax.engine.engine import Engine
from mbjax.io.load import LoadedBase

TINY = dataclasses.replace(PLAIN, n_layers=2, vocab_size=258, max_context=256)


def tiny_engine(context: int = 256) -> Engine:
    base = LoadedBase(random_base(TINY), TINY, byte_tokenizer(), "0" * 64, "tiny", Path("tiny"))
    return Engine(base, context=context)
