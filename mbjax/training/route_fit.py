"""Fits what the router knows, in numpy and float64: the routing space, and one pack's key in it.

Nothing here sees another pack: a key comes from its own prompts and the background alone.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

SHRINK = 0.1  # of the mean variance, added to every direction's: what the background hardly varies in counts less
SAMPLE, STRENGTH = 1000, 60.0  # the classifier's ridge, for so many prompts in all
TRIMS = 2  # times that background prompts which look like a pack's own are set aside
MIXED, MIXTURES, SHARES = 0.3, 800, (0.35, 0.65)  # weight, number and make-up of prompts that are half something else
GROUPS, FOLDS = 40, 5  # kinds of background prompts, by k-means; parts of whole kinds that are left out in turn
FEWEST = 10  # foreign prompts that a fit needs
MARGIN = 0.5  # logits above even odds from which a pack is selected
CONTRAST = 0.1  # share of the foreign side that prompts given as not the pack's make up
KEEPS = 0.95  # share of its own prompts, left out of the fit, that a threshold must not go beyond


@dataclasses.dataclass(frozen=True)
class FittedKey:
    """A linear scorer whose logit is calibrated, and the probability from which it selects its pack."""

    direction: np.ndarray  # float32 [W]
    bias: np.ndarray  # float32 [1]
    threshold: float
    fires: float  # share of the background, of kinds left out, that reaches the threshold
    keeps: float  # share of its own prompts, left out, that does


def fit_space(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and whitening [D, D], float32, of background states [N, D].

    The covariance is shrunk towards a multiple of the identity, so that directions in which the background has next
    to no variance are not blown up (Ledoit and Wolf 2004 in form; the weight is fixed).
    """
    wide = states.astype(np.float64)
    mean = wide.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(wide.T))
    scales = 1 / np.sqrt(values + SHRINK * values.mean())
    whitening = (vectors * scales) @ vectors.T  # symmetric: no sign or order of eigenvectors to choose
    return mean.astype(np.float32), whitening.astype(np.float32)


def fit_key(
    sets: Sequence[np.ndarray],
    background: np.ndarray,
    against: np.ndarray | None = None,
    held_out: np.ndarray | None = None,
    seed: int = 0,
) -> FittedKey:
    """The key of a pack from sets of its own prompts, [N, W] each and of equal weight, and the background [M, W].
    `against` [K, W] are prompts that look like its own and are not: they weigh CONTRAST of the foreign side.
    `held_out` [H, W] are more of its own, of groups that the sets do not hold: the threshold keeps KEEPS of them, too.

    A ridge logistic regression with both sides of equal weight. The background holds a few prompts of every kind,
    the pack's own among them: those that a first fit takes for its own are set aside. A part of the pack's side are
    mixtures of an own and a background prompt, against mixtures of two background prompts, so that a prompt of which
    only one half is the pack's is found, too. The logits are calibrated (Platt 1999) on prompts of both sides that
    were left out of the fit, the background's by whole kinds.
    """
    own = np.concatenate(sets)
    share = np.concatenate([np.full(len(part), 1 / (len(sets) * len(part))) for part in sets])
    foreign = _foreign(own, share, background)
    if against is not None and len(against):
        copies = max(1, round(CONTRAST / (1 - CONTRAST) * len(foreign) / len(against)))
        foreign = np.concatenate([foreign, np.tile(against, (copies, 1))])
    fitted = _mixed_fit(own, share, foreign, seed)
    fold, kind = np.arange(len(own)) % FOLDS, parts_of_kinds(foreign, seed)
    kept, taken = np.zeros(len(own)), np.zeros(len(foreign))
    for part in range(FOLDS):
        rest = fold != part
        weights, bias = _mixed_fit(own[rest], share[rest], foreign[kind != part], seed, fitted)
        kept[~rest] = own[~rest] @ weights + bias
        taken[kind == part] = foreign[kind == part] @ weights + bias
    slope, offset = platt(kept, taken, share)
    cut = min(MARGIN, _weighted_quantile(kept, share, 1 - KEEPS))
    if held_out is not None and len(held_out):
        cut = min(cut, float(np.quantile(held_out @ fitted[0] + fitted[1], 1 - KEEPS)))
    return FittedKey(
        direction=(slope * fitted[0]).astype(np.float32),
        bias=np.asarray([slope * fitted[1] + offset], np.float32),
        threshold=round(1 / (1 + math.exp(-(slope * cut + offset))), 6),
        fires=float((taken >= cut).mean()),
        keeps=float(share[kept >= cut].sum()),
    )


def _foreign(own: np.ndarray, share: np.ndarray, background: np.ndarray) -> np.ndarray:
    """The background prompts that do not look like the pack's own; all of them where none would be left."""
    weights, bias = logistic_regression(own, share, background)
    foreign = background
    for _ in range(TRIMS):
        strange = background[background @ weights + bias < 0]
        foreign = strange if len(strange) >= FEWEST else background
        weights, bias = logistic_regression(own, share, foreign, (weights, bias))
    return foreign


def _mixed_fit(
    own: np.ndarray, share: np.ndarray, foreign: np.ndarray, seed: int, start: tuple[np.ndarray, float] | None = None
) -> tuple[np.ndarray, float]:
    rng = np.random.default_rng(seed)
    part = rng.uniform(*SHARES, (MIXTURES, 1))
    chosen = own[rng.choice(len(own), MIXTURES, p=share / share.sum())]
    others = foreign[rng.integers(len(foreign), size=(3, MIXTURES))]
    positive = np.concatenate([own, part * chosen + (1 - part) * others[0]])
    negative = np.concatenate([foreign, part * others[1] + (1 - part) * others[2]])
    weights = np.concatenate([share / share.sum() * (1 - MIXED), np.full(MIXTURES, MIXED / MIXTURES)])
    return logistic_regression(positive, weights, negative, start)


def logistic_regression(
    positive: np.ndarray, share: np.ndarray, negative: np.ndarray, start: tuple[np.ndarray, float] | None = None
) -> tuple[np.ndarray, float]:
    """Weights [W] and bias by Newton's method; both sides weigh the same, the positive one as `share` [N] has it."""
    x = np.concatenate([positive, negative]).astype(np.float32)
    x = np.concatenate([x, np.ones((len(x), 1), np.float32)], axis=1)
    y = np.concatenate([np.ones(len(positive)), np.zeros(len(negative))])
    share = SAMPLE / 2 * np.concatenate([share / share.sum(), np.full(len(negative), 1 / len(negative))])
    ridge = np.full(x.shape[1], STRENGTH)
    ridge[-1] = 1e-3  # the bias is all but free
    theta = np.zeros(x.shape[1]) if start is None else np.append(*start)
    for _ in range(20):
        p = 1 / (1 + np.exp(-np.clip(x @ theta, -30, 30)))
        gradient = x.T @ (share * (p - y)) + ridge * theta
        curvature = (share * np.maximum(p * (1 - p), 1e-4)).astype(np.float32)
        hessian = ((x * curvature[:, None]).T @ x).astype(np.float64) + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        theta -= step
        if np.abs(step).max() < 1e-3 * np.abs(theta).max():
            break
    return theta[:-1], float(theta[-1])


def platt(positive: np.ndarray, negative: np.ndarray, share: np.ndarray) -> tuple[float, float]:
    """Slope and offset that make logits of probabilities of scores, for sides of equal weight, the positive one as
    `share` [N] has it; targets are smoothed
    as Platt has them, so that classes without any overlap do not give endless slopes."""
    scores = np.concatenate([positive, negative])
    high, low = (len(positive) + 1) / (len(positive) + 2), 1 / (len(negative) + 2)
    target = np.concatenate([np.full(len(positive), high), np.full(len(negative), low)])
    share = np.concatenate([share / share.sum(), np.full(len(negative), 1 / len(negative))]) / 2
    x = np.stack([scores, np.ones_like(scores)], axis=1)
    theta = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ theta, -30, 30)))
        gradient = x.T @ (share * (p - target))
        hessian = (x * (share * np.maximum(p * (1 - p), 1e-6))[:, None]).T @ x + 1e-6 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        theta -= step / max(1.0, np.abs(step).max())  # far from the optimum Newton's step may overshoot
        if np.abs(step).max() < 1e-9:
            break
    return float(theta[0]), float(theta[1])


def _weighted_quantile(values: np.ndarray, share: np.ndarray, at: float) -> float:
    """The value below which `at` of the summed share lies."""
    order = np.argsort(values, kind="stable")
    return float(values[order][np.searchsorted(np.cumsum(share[order]) / share.sum(), at)])


def parts_of_kinds(points: np.ndarray, seed: int) -> np.ndarray:
    """The part [N], 0 to FOLDS - 1, of each point: whole kinds, spread so that the parts are about as large.

    Kinds are by direction: the few longest points would otherwise be kinds of their own, and all others one."""
    unit = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-6)
    kind = k_means(unit, GROUPS, seed)
    sizes, part, load = np.bincount(kind, minlength=GROUPS), np.zeros(GROUPS, np.int64), np.zeros(FOLDS)
    for group in np.argsort(-sizes, kind="stable"):
        part[group] = load.argmin()
        load[part[group]] += sizes[group]
    return part[kind]


def k_means(points: np.ndarray, n: int, seed: int, rounds: int = 25) -> np.ndarray:
    """The group of each point [N], 0 to n - 1 (Lloyd 1982)."""
    rng = np.random.default_rng(seed)
    points = points.astype(np.float64)
    centres = points[rng.choice(len(points), n, replace=len(points) < n)]
    nearest = np.zeros(len(points), np.int64)
    for _ in range(rounds):
        distance = (centres**2).sum(axis=1)[None] - 2 * points @ centres.T
        nearest = distance.argmin(axis=1)
        groups = [points[nearest == group] for group in range(n)]
        centres = np.stack([own.mean(axis=0) if len(own) else old for own, old in zip(groups, centres, strict=True)])
    return nearest
