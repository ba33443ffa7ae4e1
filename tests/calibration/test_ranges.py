"""Ranges of distributions whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from boxwright.calibration.histograms import ChannelHistograms, Distribution
from boxwright.calibration.ranges import RangeKind, RangeMethod, choose_range, squared_error

KINDS: tuple[RangeKind, ...] = ("minmax", "percentile", "entropy", "mse")
NUM_VALUES = 1e6
# Bounds are tried in steps of this ratio.
CANDIDATE_STEP = 30 ** (1 / 63)


def even(low: float, high: float, *, outlier: float | None = None, mass: float = 1.0) -> Distribution:
    """A million values spread evenly, and a few at one place beyond."""
    count = 2000
    width = (high - low) / count
    middles, widths = low + (np.arange(count) + 0.5) * width, np.full(count, width)
    masses = np.full(count, NUM_VALUES / count)
    if outlier is not None:
        middles, widths, masses = np.append(middles, outlier), np.append(widths, 0.0), np.append(masses, mass)
    ends = (low, high) if outlier is None else (low, outlier)
    return Distribution(middles=middles, widths=widths, masses=masses, minimum=ends[0], maximum=ends[1])


@pytest.mark.parametrize(
    ("low", "high", "wanted"), [(-0.3, 2.7, (-0.3, 2.7)), (1.0, 2.0, (0.0, 2.0)), (-5.0, -1.0, (-5.0, 0.0))]
)
def test_minmax_is_exact_and_holds_zero(low: float, high: float, wanted: tuple[float, float]) -> None:
    histograms = ChannelHistograms(1)
    histograms.add(np.linspace(low, high, 1001, dtype=np.float32)[None])
    assert choose_range(histograms.distribution(), RangeMethod(kind="minmax")) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_spread_evenly_is_kept_whole(kind: RangeKind) -> None:
    assert choose_range(even(0, 1), RangeMethod(kind=kind)) == pytest.approx((0, 1), abs=3e-4)
    assert choose_range(even(-1, 1), RangeMethod(kind=kind)) == pytest.approx((-1, 1), abs=3e-4)


@pytest.mark.parametrize("percentile", [60, 99, 99.9, 100])
def test_a_percentile_of_magnitudes(percentile: float) -> None:
    method = RangeMethod(percentile=percentile)
    part = percentile / 100
    assert choose_range(even(0, 4), method) == pytest.approx((0, 4 * part))
    assert choose_range(even(-3, 3), method) == pytest.approx((-3 * part, 3 * part))


def test_a_percentile_leaves_out_what_is_rarer_than_the_rest_of_it() -> None:
    method = RangeMethod(percentile=99.99)
    assert choose_range(even(0, 1, outlier=20, mass=99), method)[1] < 1
    assert choose_range(even(0, 1, outlier=20, mass=101), method)[1] == 20


@pytest.mark.parametrize(("mass", "outlier"), [(1, 20), (10, 20), (1, 5), (1, 40)])
@pytest.mark.parametrize("low", [0.0, 0.9])
def test_the_least_squared_error(mass: float, outlier: float, low: float) -> None:
    """Of T²/(12·255²) + m (M-T)²/N, what rounding to 255 steps of [0, T] and clipping cost, the least is at this T."""
    by_clipping, by_rounding = 2 * mass / NUM_VALUES, 1 / (6 * 255**2)
    wanted = outlier * by_clipping / (by_rounding + by_clipping)
    got = choose_range(even(low, 1, outlier=outlier, mass=mass), RangeMethod(kind="mse"))
    assert got[0] == 0 and abs(math.log(got[1] / wanted)) <= math.log(CANDIDATE_STEP)


def test_a_range_that_must_reach_down_to_zero_is_judged_with_what_that_costs() -> None:
    """All lies between 10 and 11 but one value at 40: steps are spent on nothing between 0 and 10."""
    wanted = 40 * 2e-6 / (2e-6 + 1 / (6 * 255**2))
    high = choose_range(even(10, 11, outlier=40), RangeMethod(kind="mse"))[1]
    assert abs(math.log(high / wanted)) <= math.log(CANDIDATE_STEP)


def test_the_squared_error_itself() -> None:
    assert squared_error(even(0, 1), 0, 1) == pytest.approx((1 / 255) ** 2 / 12)
    # The upper half is clipped: a mean of x² over 0 to 0.5, for half of the values.
    assert squared_error(even(0, 1), 0, 0.5) == pytest.approx((0.5 / 255) ** 2 / 24 + 0.5**3 / 3, rel=1e-4)
    zeros = Distribution(middles=np.zeros(1), widths=np.zeros(1), masses=np.full(1, 9.0), minimum=0.0, maximum=0.0)
    assert squared_error(zeros, -1, 1) == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 0.0), (0.0, 255.0), (-2.1, 2.6)])
def test_peaks_at_both_ends_lie_inside(kind: RangeKind, ends: tuple[float, float]) -> None:
    """Black and white, as of drawings: nothing is an outlier, and nothing lies beyond what was seen."""
    values = np.repeat(np.array(ends, dtype=np.float32), [9700, 300])
    histograms = ChannelHistograms(1)
    histograms.add(values[None])
    distribution = histograms.distribution()
    assert choose_range(distribution, RangeMethod(kind=kind)) == pytest.approx(ends, rel=0.002)
    assert (distribution.middles - distribution.widths / 2 >= ends[0]).all()
    assert (distribution.middles + distribution.widths / 2 <= ends[1]).all()


def test_entropy_cuts_a_rare_outlier_off_and_keeps_a_frequent_one() -> None:
    method = RangeMethod(kind="entropy")
    assert 1 <= choose_range(even(0, 1, outlier=20, mass=1), method)[1] < 2
    assert choose_range(even(0, 1, outlier=20, mass=1e5), method)[1] == 20


def test_entropy_looks_below_zero_as_above() -> None:
    method = RangeMethod(kind="entropy")
    for mass, lowest in ((1.0, -2.0), (1e5, -20.0)):
        above = even(0, 1, outlier=20, mass=mass)
        below = replace(
            above,
            middles=-above.middles[::-1],
            widths=above.widths[::-1],
            masses=above.masses[::-1],
            minimum=-above.maximum,
            maximum=-above.minimum,
        )
        low, high = choose_range(below, method)
        assert high == 0 and lowest <= low <= -1


@pytest.mark.parametrize("count", [0, 10_000, 1_000_000])
def test_zeros_have_no_say_in_the_entropy(count: int) -> None:
    """Behind a ReLU half of all are zeros, and every range represents them exactly."""
    values = np.abs(np.random.default_rng(0).standard_t(3, 20_000)).astype(np.float32)
    with_zeros = np.concatenate([values, np.zeros(count, np.float32)])
    bounds = []
    for some in (values, with_zeros):
        histograms = ChannelHistograms(1)
        histograms.add(some[None], most_values=1 << 22)
        bounds.append(choose_range(histograms.distribution(), RangeMethod(kind="entropy")))
    assert bounds[0] == bounds[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_is_always_zero(kind: RangeKind) -> None:
    histograms = ChannelHistograms(2)
    histograms.add(np.zeros((2, 50), dtype=np.float32))
    low, high = choose_range(histograms.distribution(), RangeMethod(kind=kind))
    assert low == high == 0
