"""What a base reads for a prompt: its token ids, and how much each of them says of what the prompt is about."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from mbjax.errors import InputError
from mbjax.io.tokenizer import Tokenizer

Message = dict[str, str]
ENOUGH = 12  # user tokens that make a turn stand on its own: a shorter one borrows from the user's turns before it


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt as tokens. `weights` float32 [T] are those of the router's mean: 0 for what the template wrote, for
    system messages and for answers; 1 for the last user turn. `raw` says that it is a text to go on with, of which no
    part is an instruction."""

    ids: list[int]
    weights: np.ndarray
    raw: bool = False


def read_prompt(tokenizer: Tokenizer, prompt: str | Sequence[Message], *, raw: bool = False) -> Prompt:
    """One user turn, or a conversation, through the chat template; with `raw`, or without a template, plain text.

    Raises InputError where it is empty, or where messages are given and there is no template.
    """
    if isinstance(prompt, str) and not prompt:
        raise InputError("the prompt is empty; give some text")
    if isinstance(prompt, str) and (raw or tokenizer.template is None):
        return raw_prompt(tokenizer.encode(prompt))
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if tokenizer.template is None:
        raise InputError("the base has no chat template; give plain text instead of messages")
    text = tokenizer.template.render(messages)
    ids, spans = tokenizer.encode_spans(text)
    return Prompt(ids, _weights(spans, user_turns(text, messages)))


def raw_prompt(ids: list[int]) -> Prompt:
    """Tokens of plain text. The state of a first position holds no meaning, only what later ones rest on."""
    weights = np.ones(len(ids), np.float32)
    weights[:1] = 0
    return Prompt(ids, weights, raw=True)


def user_turns(text: str, messages: Sequence[Message]) -> list[tuple[int, int]]:
    """Where the contents of the user's messages stand in the rendered text, characters `[begin, end)`.

    A content that the template changed is passed over; where that leaves none, all of the text counts as one turn.
    """
    at, turns = 0, []
    for message in messages:
        content = message["content"].strip()
        begin = text.find(content, at)
        if begin < 0 or not content:
            continue
        at = begin + len(content)
        if message["role"] == "user":
            turns.append((begin, at))
    return turns or [(0, len(text))]


def _weights(spans: Sequence[tuple[int, int]], turns: Sequence[tuple[int, int]]) -> np.ndarray:
    """1 for the tokens of the last turn; earlier turns, the nearest first, fill up what it lacks of `ENOUGH`."""
    weights, missing = np.zeros(len(spans), np.float32), float(ENOUGH)
    for begin, end in reversed(turns):
        own = [i for i, (a, b) in enumerate(spans) if a < end and b > begin]
        share = 1.0 if missing == ENOUGH else min(1.0, missing / max(1, len(own)))
        weights[own] = share
        missing -= share * len(own)
        if missing <= 0:
            break
    return weights
