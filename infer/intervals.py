"""95% intervals of measured shares and rates."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_Z = 1.959964  # of a normal distribution
_RESAMPLES = 1000


def wilson(right: int, n: int) -> tuple[float, float]:
    """Of a share (Wilson 1927)."""
    share, z2 = right / n, _Z**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def interval(results: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Of the value of an evaluation's items: Wilson's for right and wrong, bootstrap (seeded) for bits per byte."""
    if "correct" in results[0]:
        return wilson(sum(bool(result["correct"]) for result in results), len(results))
    bits, sizes = (np.array([result[key] for result in results], np.float64) for key in ("bits", "bytes"))
    draws = np.random.default_rng(0).integers(len(results), size=(_RESAMPLES, len(results)))
    low, high = np.quantile(bits[draws].sum(axis=1) / sizes[draws].sum(axis=1), [0.025, 0.975])
    return float(low), float(high)
