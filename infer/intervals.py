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


def gap(results: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> tuple[float, tuple[float, float]]:
    """How much larger the value of the one evaluation of the same items is than the other's, and its interval
    (bootstrap over the items, seeded)."""
    shares = "correct" in results[0]
    tops = [np.array([float(r["correct" if shares else "bits"]) for r in part]) for part in (results, others)]
    sizes = np.array([1.0 if shares else float(r["bytes"]) for r in results])
    difference = tops[0] - tops[1]
    draws = np.random.default_rng(0).integers(len(results), size=(_RESAMPLES, len(results)))
    low, high = np.quantile(difference[draws].sum(axis=1) / sizes[draws].sum(axis=1), [0.025, 0.975])
    return float(difference.sum() / sizes.sum()), (float(low), float(high))


def macro_f1(truth: Sequence[str], given: Sequence[str]) -> float:
    """The mean over the classes of `truth` of 2 * right / (true + given)."""
    scores = []
    for label in sorted(set(truth)):
        right = sum(t == g == label for t, g in zip(truth, given, strict=True))
        scores.append(2 * right / (sum(t == label for t in truth) + sum(g == label for g in given)))
    return sum(scores) / len(scores)
