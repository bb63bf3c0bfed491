"""A chat of several turns over one engine."""

from collections.abc import Sequence

from mbjax.core.sampling import Sampling
from mbjax.engine.engine import Engine
from mbjax.engine.stream import Stream
from mbjax.errors import InputError
from mbjax.io.prompt import Message


class Conversation:
    """The turns so far. `ask` streams an answer, `answered` puts it into the history."""

    def __init__(self, engine: Engine, system: str | None = None, pack: str = "auto") -> None:
        self._engine, self._pack = engine, pack
        self._opening: list[Message] = [{"role": "system", "content": system}] if system else []
        self.turns: list[Message] = []

    def ask(self, text: str, *, max_tokens: int, sampling: Sampling | None = None, stop: Sequence[str] = ()) -> Stream:
        """Streams the answer to `text` after the turns before it.

        The oldest exchanges are forgotten where they would leave less than `max_tokens`, or a quarter of the context,
        to the answer. Raises InputError where `text` alone does not fit; the history is then as it was.
        """
        if not text.strip():
            raise InputError("the prompt is empty; give some text")
        engine, turns = self._engine, [*self.turns, {"role": "user", "content": text}]
        room = engine.context - min(max_tokens, engine.context // 4)
        while len(turns) > 1 and self._n_tokens(turns) > room:
            turns = turns[2:]
        messages = [*self._opening, *turns]
        stream = engine.stream(messages, pack=self._pack, max_tokens=max_tokens, sampling=sampling, stop=stop)
        self.turns = turns
        return stream

    def answered(self, text: str) -> None:
        """Notes the answer, or as much of it as came, to the last question."""
        self.turns.append({"role": "assistant", "content": text})

    def reset(self) -> None:
        """Forgets every turn but the system message."""
        self.turns = []

    def _n_tokens(self, turns: list[Message]) -> int:
        tokenizer = self._engine.base.tokenizer
        if tokenizer.template is None:
            raise InputError(f"{self._engine.base.name} has no chat template; use `mbjax generate --raw`")
        return len(tokenizer.encode(tokenizer.template.render([*self._opening, *turns]), add_bos=False))
