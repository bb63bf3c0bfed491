"""How near mbjax's float32 logits come to llama.cpp's, which quantises activations, on the same GGUF file."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import llama_cpp
import numpy as np
from mixed_text import mixed_lines
from real_texts import texts_of_lengths

from mbjax.core.forward import forward
from mbjax.io.load import LoadedBase

LENGTHS = (128, 512, 1024)  # texts are padded to these, so that few programs are compiled
CLEAR_MARGIN = 0.5  # of the largest logit over the second


@dataclasses.dataclass(frozen=True)
class TextResult:
    """One text. kl: mean over positions of KL(mbjax || llama.cpp) in nats; same: positions with the same top token;
    clear, clear_same: the same among positions whose float32 margin exceeds CLEAR_MARGIN."""

    name: str
    tokens: int
    kl: float
    same: int
    clear: int
    clear_same: int


def compare_texts(base: LoadedBase, llama: llama_cpp.Llama) -> list[TextResult]:
    """Every text of real_texts, all positions. `llama` must keep all logits."""
    results = []
    for name, ids in texts_of_lengths(lambda text: base.tokenizer.encode(text, add_bos=False, special=False)):
        theirs = _logits_llamacpp(llama, ids)
        results.append(_compare(name, _logits_mbjax(base, ids), theirs))
    return results


def summary(results: list[TextResult]) -> dict[str, Any]:
    """Means over all positions of all texts."""
    n = sum(result.tokens for result in results)
    clear = sum(result.clear for result in results)
    return {
        "texts": len(results),
        "positions": n,
        "mean_kl": sum(result.kl * result.tokens for result in results) / n,
        "same_top": sum(result.same for result in results) / n,
        "clear_positions": clear,
        "same_top_clear": sum(result.clear_same for result in results) / clear,
    }


def compare_token_ids(base: LoadedBase, llama: llama_cpp.Llama) -> dict[str, Any]:
    """How many of 2,000 mixed lines get the same token ids, and the first that does not."""
    lines = mixed_lines()
    other = [
        line
        for line in lines
        if base.tokenizer.encode(line, add_bos=False, special=False)
        != llama.tokenize(line.encode(), add_bos=False, special=False)
    ]
    return {"lines": len(lines), "same": len(lines) - len(other), "first_other": other[0] if other else None}


def _logits_llamacpp(llama: llama_cpp.Llama, ids: list[int]) -> np.ndarray:
    llama.reset()
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)])


def _logits_mbjax(base: LoadedBase, ids: list[int]) -> np.ndarray:
    length = next(length for length in LENGTHS if length >= len(ids))
    tokens = np.zeros((1, length), np.int32)
    tokens[0, : len(ids)] = ids
    gates = jnp.zeros((1, length, 0), jnp.float32)
    logits, _ = forward(base.params, (), gates, jnp.asarray(tokens), config=base.config)
    return np.asarray(logits[0, : len(ids)])


def _compare(name: str, ours: np.ndarray, theirs: np.ndarray) -> TextResult:
    p, q = _log_softmax(ours), _log_softmax(theirs)
    second, first = np.partition(ours, -2, axis=-1)[:, -2:].T
    clear = first - second > CLEAR_MARGIN
    same = ours.argmax(axis=-1) == theirs.argmax(axis=-1)
    kl = float((np.exp(p) * (p - q)).sum(axis=-1, dtype=np.float64).mean())
    return TextResult(name, len(ours), kl, int(same.sum()), int(clear.sum()), int((same & clear).sum()))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
