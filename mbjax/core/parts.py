"""Prompts of two parts: where one that calls for two packs falls apart into what the one and the other is called for.

A pack's logit for a prompt is linear in the mean of its tokens' states. So each token has a logit of its own, whose mean
over any stretch is what that stretch by itself would have: the prompt is cut where the one pack leads before it and the
other behind it by most. "In which ICD-10 chapter is asthma, and | how much is 12 + 15?"

Summed, two packs of a small base answer neither part; each by itself answers its own (docs/two_packs.md).
"""

from collections.abc import Sequence

import numpy as np

from mbjax.core.router import Key, Space

FEWEST_OF_A_PART = 5  # tokens: the mean of fewer lies anywhere


def token_logits(space: Space, keys: Sequence[Key], states: np.ndarray) -> np.ndarray:
    """What each token has by itself: states float32 [T, D], as `unit_states` gives them -> float32 [T, P]."""
    mean, whitening = np.asarray(space.mean), np.asarray(space.whitening)
    directions = np.stack([np.asarray(key.direction) for key in keys]) @ whitening
    return (states - mean) @ directions.T + np.concatenate([np.asarray(key.bias) for key in keys])


def order_of_parts(logits: np.ndarray, thresholds: Sequence[float]) -> tuple[int, int] | None:
    """Which of two packs the first part of a prompt calls for, and which the second: (0, 1) or (1, 0). None where the
    prompt is of one piece: where a part is shorter than `FEWEST_OF_A_PART` or does not call for its pack.

    logits float32 [T, 2] are those of the tokens of the turn that is to be answered.
    """
    n_tokens = len(logits)
    ahead = np.concatenate([[0.0], np.cumsum(logits[:, 0] - logits[:, 1], dtype=np.float64)])
    lead = 2 * ahead - ahead[-1]  # of the first pack over the second before each cut, and of the second behind it
    cut = int(np.abs(lead).argmax())
    if min(cut, n_tokens - cut) < FEWEST_OF_A_PART:
        return None
    order, least = (0, 1) if lead[cut] > 0 else (1, 0), _logits(thresholds)
    if any(part[:, own].mean() < least[own] for own, part in zip(order, (logits[:cut], logits[cut:]), strict=True)):
        return None
    return order


def _logits(probabilities: Sequence[float]) -> np.ndarray:
    inside = np.clip(np.asarray(probabilities, np.float64), 1e-9, 1 - 1e-9)
    return np.log(inside / (1 - inside))
