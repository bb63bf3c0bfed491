"""Several steps as one program, as accelerators take them, give what single steps give."""

import threading
from pathlib import Path

import pytest
from tiny import random_base
from tiny_engine import TINY
from tiny_text import byte_tokenizer

from mbjax.core.sampling import Sampling
from mbjax.engine.engine import Engine
from mbjax.engine.programs import BURST
from mbjax.io.load import LoadedBase


def an_engine(lanes: int, *, bursts: bool) -> Engine:
    base = LoadedBase(random_base(TINY), TINY, byte_tokenizer(), "0" * 64, "tiny", Path("tiny"))
    engine = Engine(base, context=192, lanes=lanes, drafts=False)
    engine.programs.bursts = bursts
    return engine


@pytest.mark.parametrize("max_tokens", [3, BURST, 2 * BURST + 3])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, top_k=20, seed=7, repetition_penalty=1.2)])
def test_a_request_alone_gets_the_same_tokens(max_tokens: int, sampling: Sampling) -> None:
    replies = []
    for bursts in (False, True):
        with an_engine(1, bursts=bursts) as engine:
            replies.append(engine.generate("Once upon", max_tokens=max_tokens, raw=True, sampling=sampling))
            burst = any("burst" in name for name in engine.programs.temporary_bytes())
            assert burst == (bursts and max_tokens > BURST)
    assert replies[0].tokens == replies[1].tokens


def test_neighbours_come_and_go() -> None:
    prompts = [("Once upon", 40), ("a", 9), ("The end of", 17), ("b", 1), ("Why", 30)]
    with an_engine(1, bursts=False) as engine:
        alone = [engine.generate(text, max_tokens=n, raw=True).tokens for text, n in prompts]
    found: dict[int, list[int]] = {}
    with an_engine(2, bursts=True) as engine:

        def ask(i: int) -> None:
            text, n = prompts[i]
            found[i] = engine.generate(text, max_tokens=n, raw=True).tokens

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[i] for i in range(len(prompts))] == alone
