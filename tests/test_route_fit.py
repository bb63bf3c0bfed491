"""What a route key is fitted from: parts of the background that are left out, and prompts that no set holds."""

import numpy as np

from mbjax.training.route_fit import FOLDS, fit_key, parts_of_kinds


def test_parts_hold_whole_kinds_and_are_about_as_large():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(60, 16)) * 4
    points = np.repeat(centres, 20, axis=0) + rng.normal(size=(1200, 16)) * 0.05
    points[::100] *= 50  # a few prompts lie far out
    part = parts_of_kinds(points, seed=0)
    assert all(len(set(part[at : at + 20])) == 1 for at in range(0, 1200, 20))
    assert np.bincount(part, minlength=FOLDS).max() < 2 * np.bincount(part, minlength=FOLDS).min()


def test_the_threshold_keeps_held_out_prompts():
    rng = np.random.default_rng(1)
    background = rng.normal(size=(800, 12))
    own = rng.normal(size=(200, 12)) * 0.3 + np.eye(12)[0] * 3
    unseen = rng.normal(size=(100, 12)) * 0.3 + np.eye(12)[0] * 1.2 + np.eye(12)[1] * 1.5
    kept = []
    for held_out in (None, unseen):
        key = fit_key([own], background, held_out=held_out)
        scores = 1 / (1 + np.exp(-(unseen @ key.direction + key.bias[0])))
        kept.append((scores >= key.threshold).mean())
    assert kept[0] < 0.9 <= kept[1]
