"""When two times are called equal: by simulation, with the noise that shared machines have."""

from __future__ import annotations

import numpy as np
import pytest

from boxwright.bench.noise import (
    compare_interleaved,
    compare_separate,
    mean_time,
    relative_spread,
    typical_time,
)

TRIALS = 100


def simulate(
    random: np.random.Generator, factor: float, drift: np.ndarray, *, launch_noise: float = 0.006
) -> list[list[float]]:
    """Block times of 10 ms * factor: a drift that all candidates share, noise of launches and rounds, and outliers."""
    noise = random.normal(0, launch_noise, (len(drift), 1)) + random.normal(0, 0.02, drift.shape)
    outliers = np.where(random.random(drift.shape) < 0.1, random.exponential(0.5, drift.shape), 0)
    return (10 * factor * np.exp(drift + noise) * (1 + outliers)).tolist()


def verdicts(factor: float, launches: int = 6, rounds: int = 8) -> list[str]:
    random = np.random.default_rng(11)
    found = []
    for _ in range(TRIALS):
        drift = random.normal(0, 0.03, (launches, rounds)).cumsum(axis=1)
        comparison = compare_interleaved(simulate(random, factor, drift), simulate(random, 1.0, drift))
        found.append(comparison.verdict)
    return found


def test_a_candidate_against_itself_is_equal_in_19_of_20_tries() -> None:
    assert verdicts(1.0).count("equal") >= 0.95 * TRIALS


@pytest.mark.parametrize(("factor", "verdict"), [(1.05, "slower"), (1 / 1.05, "faster")])
def test_a_difference_of_5_percent_is_told_in_19_of_20_tries(factor: float, verdict: str) -> None:
    assert verdicts(factor).count(verdict) >= 0.95 * TRIALS


def test_a_difference_that_is_sure_but_small_is_equal() -> None:
    first = [[10.1] * 8] * 3
    comparison = compare_interleaved(first, [[10.0] * 8] * 3)
    assert comparison.ratio == pytest.approx(1.01)
    assert comparison.low == pytest.approx(1.01)
    assert comparison.verdict == "equal"


def test_a_drift_that_all_candidates_share_does_not_blur_their_comparison() -> None:
    """The second half of the run is twice as slow: interleaved rounds see 10 %, separate ones cannot."""
    drift = np.array([1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0])
    slow, fast = [(11 * drift).tolist()] * 4, [(10 * drift).tolist()] * 4
    interleaved = compare_interleaved(slow, fast)
    assert (interleaved.low, interleaved.ratio, interleaved.high) == pytest.approx((1.1, 1.1, 1.1))
    assert interleaved.verdict == "slower"
    assert compare_separate(slow, fast).verdict == "equal"


def test_separate_runs_are_told_apart_where_they_are_calm() -> None:
    random = np.random.default_rng(2)
    calm = np.zeros((5, 8))
    old, new = simulate(random, 1.0, calm), simulate(random, 1.1, calm)
    assert compare_separate(new, old).verdict == "slower"
    assert compare_separate(old, new).verdict == "faster"
    assert compare_separate(old, simulate(random, 1.0, calm)).verdict == "equal"


def test_intervals_hold_the_truth_and_narrow_with_more_launches() -> None:
    random = np.random.default_rng(3)
    widths = []
    for launches in (3, 20):
        held, width = 0, 0.0
        for _ in range(TRIALS):
            interval = typical_time(simulate(random, 1.0, np.zeros((launches, 8))))
            held += interval.low <= 10.15 and interval.high >= 9.95  # the outliers move the median up by about 1 %
            assert interval.low <= interval.value <= interval.high
            width += (interval.high - interval.low) / TRIALS
        assert held >= 0.9 * TRIALS
        widths.append(width)
    assert widths[1] < 0.6 * widths[0]


def test_the_mean_sees_outliers_and_the_median_does_not() -> None:
    rounds = [[10.0, 10.0, 10.0, 50.0]] * 3
    assert typical_time(rounds).value == 10.0
    assert mean_time(rounds).value == 20.0
    assert mean_time(rounds).low < 20.0 < mean_time(rounds).high


def test_spread_of_calm_and_of_disturbed_rounds() -> None:
    assert relative_spread([[10.0] * 8] * 3) == 0
    assert relative_spread([[8.0, 9.0, 10.0, 11.0, 12.0]] * 3) == pytest.approx(0.16)
