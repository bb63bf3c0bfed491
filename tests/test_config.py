"""The configuration: what it refuses, and the rotary frequencies against their formulas."""

import dataclasses
import math

import pytest
from tiny import PLAIN

from mbjax.core.config import RopeScaling


def test_the_tap_is_at_half_the_depth_by_default() -> None:
    assert dataclasses.replace(PLAIN, n_layers=7, tap=-1).tap == 3
    assert dataclasses.replace(PLAIN, n_layers=7, tap=5).tap == 5
    assert PLAIN.q_per_kv == 2


@pytest.mark.parametrize(
    "change, said",
    [
        ({"n_layers": 0}, "n_layers is 0"),
        ({"vocab_size": -3}, "vocab_size is -3"),
        ({"n_heads": 5}, "n_heads 5 is not a multiple of n_kv_heads 2"),
        ({"head_dim": 15}, "head_dim 15 is odd"),
        ({"tap": 9}, "tap 9 lies beyond"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(PLAIN, **change)


def test_plain_frequencies_fall_from_one_to_near_the_inverse_base() -> None:
    freq = dataclasses.replace(PLAIN, head_dim=8, rope_theta=10_000.0).inv_freq()
    assert freq == pytest.approx((1.0, 0.1, 0.01, 0.001))


def test_linear_scaling_divides_every_frequency() -> None:
    plain = PLAIN.inv_freq()
    scaled = dataclasses.replace(PLAIN, rope_scaling=RopeScaling("linear", factor=4.0)).inv_freq()
    assert scaled == pytest.approx([f / 4 for f in plain])


def test_factors_divide_each_frequency() -> None:
    config = dataclasses.replace(PLAIN, head_dim=4)
    scaled = dataclasses.replace(config, rope_scaling=RopeScaling("factors", factors=(1.0, 8.0)))
    assert scaled.inv_freq() == pytest.approx((1.0, config.inv_freq()[1] / 8))
    with pytest.raises(ValueError):
        dataclasses.replace(config, rope_scaling=RopeScaling("factors", factors=(1.0,))).inv_freq()


def test_llama3_scaling_stretches_only_long_wavelengths() -> None:
    scaling = RopeScaling("llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=8192)
    config = dataclasses.replace(PLAIN, head_dim=64, rope_theta=500_000.0, rope_scaling=scaling)
    plain = dataclasses.replace(config, rope_scaling=None).inv_freq()
    kinds = set()
    for before, after in zip(plain, config.inv_freq(), strict=True):
        wavelength = 2 * math.pi / before
        if wavelength < 8192 / 4:
            kinds.add("short")
            assert after == before
        elif wavelength > 8192:
            kinds.add("long")
            assert after == pytest.approx(before / 32)
        else:
            kinds.add("between")
            share = (8192 / wavelength - 1) / (4 - 1)
            assert after == pytest.approx((1 - share) * before / 32 + share * before)
    assert kinds == {"short", "between", "long"}


def test_an_unknown_scaling_is_named() -> None:
    with pytest.raises(ValueError, match="'yarn'"):
        dataclasses.replace(PLAIN, rope_scaling=RopeScaling("yarn")).inv_freq()
