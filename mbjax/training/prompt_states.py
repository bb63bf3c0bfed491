"""What the router reads of many prompts: their mean states at the tap, from packed rows."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from mbjax.core.ops import Rows
from mbjax.core.router import row_states
from mbjax.io.load import LoadedBase
from mbjax.io.prompt import Prompt, read_prompt
from mbjax.training.examples import Example
from mbjax.training.rows import PackedRows, pack_rows

_ROW = 512  # tokens of a row, shared by as many prompts as fit behind one copy of the template's opening
_MOST_TOKENS = 512  # of one prompt: what it is about shows by then

Progress = Callable[[int, int], None]


def prompt_states(base: LoadedBase, prompts: Sequence[str], progress: Progress | None = None) -> np.ndarray:
    """float32 [N, D], in the order of `prompts`: each as one user turn, template tokens left out.

    Raises InputError for an empty prompt. The same list of prompts gives the same bits.
    """
    read = [read_prompt(base.tokenizer, prompt) for prompt in prompts]
    examples = [
        Example(tuple(p.ids[:_MOST_TOKENS]), (False,) * min(len(p.ids), _MOST_TOKENS), i) for i, p in enumerate(read)
    ]
    rows = pack_rows(examples, _ROW, seed=0)
    states = np.zeros((len(read), base.config.d_model), np.float32)
    for at in range(len(rows)):
        parts = (jnp.asarray(x[at : at + 1]) for x in (rows.tokens, rows.positions, rows.segments))
        tokens, *places = parts
        h = np.asarray(row_states(base.params, tokens, Rows(*places), config=base.config))[0]
        for segment, i in enumerate(rows.lines[at], 1):
            states[i] = _mean(h, rows, at, segment, read[i])
        if progress is not None:
            progress(at + 1, len(rows))
    return states


def _mean(h: np.ndarray, rows: PackedRows, row: int, segment: int, prompt: Prompt) -> np.ndarray:
    """Of one prompt's tokens in a row: the opening that all share, then its own."""
    segments = rows.segments[row]
    where = np.concatenate([np.flatnonzero(segments == 0), np.flatnonzero(segments == segment)])
    weights = prompt.weights[: len(where)]
    return (weights @ h[where]) / max(float(weights.sum()), 1e-6)
