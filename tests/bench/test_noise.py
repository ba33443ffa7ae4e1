"""When two times are called equal: by simulation, with the noise that shared machines have."""

from __future__ import annotations

import numpy as np
import pytest

from boxwright.bench.noise import (
    compare_interleaved,
    compare_separate,
    image_statistics,
    relative_spread,
    typical_time,
)
from boxwright.bench.summary import is_precise

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
    drift = np.repeat([[1.0], [1.0], [2.0], [2.0]], 8, axis=1)
    slow, fast = (11 * drift).tolist(), (10 * drift).tolist()
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


@pytest.mark.parametrize("launch_noise", [0.002, 0.015, 0.04])
@pytest.mark.parametrize("launches", [3, 5, 8])
def test_an_interval_of_95_percent_holds_the_truth_as_often(launches: int, launch_noise: float) -> None:
    """Also where there are few launches that differ much, of which a plain bootstrap knows too little."""
    random = np.random.default_rng([launches, int(1000 * launch_noise)])
    calm, trials = np.zeros((launches, 8)), 400
    held = 0
    for _ in range(trials):
        first, second = (simulate(random, 1.0, calm, launch_noise=launch_noise) for _ in range(2))
        comparison = compare_interleaved(first, second)
        held += comparison.low <= 1 <= comparison.high
    assert 0.92 * trials <= held <= 0.99 * trials  # 0.95, give or take three standard errors


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "equal"), (1.05, "slower")])
def test_verdicts_are_right_when_launches_end_as_soon_as_they_suffice(factor: float, verdict: str) -> None:
    """As `boxwright bench` does it, on a machine whose processes differ by 1.5 %."""
    random = np.random.default_rng(7)
    right = 0
    for _ in range(TRIALS):
        drift = random.normal(0, 0.03, (8, 8)).cumsum(axis=1)
        first, second = (simulate(random, size, drift, launch_noise=0.015) for size in (factor, 1.0))
        count = next(
            (n for n in range(3, 8) if is_precise([dict(enumerate(times[:n])) for times in (first, second)])), 8
        )
        right += compare_interleaved(first[:count], second[:count]).verdict == verdict
    assert right >= 0.95 * TRIALS


def test_intervals_narrow_with_more_launches() -> None:
    random = np.random.default_rng(3)
    widths = []
    for launches in (3, 20):
        intervals = [typical_time(simulate(random, 1.0, np.zeros((launches, 8)))) for _ in range(TRIALS)]
        assert all(interval.low < interval.value < interval.high for interval in intervals)
        widths.append(np.mean([interval.high - interval.low for interval in intervals]))
    assert widths[1] < 0.4 * widths[0]


def test_of_one_round_nothing_is_known() -> None:
    comparison = compare_interleaved([[12.0]], [[10.0]])
    assert comparison.ratio == pytest.approx(1.2)
    assert comparison.verdict == "equal"


def test_statistics_of_images_by_hand() -> None:
    """One image of ten takes longer: the mean sees it, the median does not. Launches that agree leave no doubt."""
    times = [10.0] * 9 + [60.0]
    (p50, p99), mean = image_statistics([times] * 3, [0.5, 0.99])
    assert (p50.value, p50.low, p50.high) == pytest.approx((10.0, 10.0, 10.0))
    assert p99.value == 60.0
    assert (mean.value, mean.low, mean.high) == pytest.approx((15.0, 15.0, 15.0))


def test_intervals_of_images_count_launches_and_not_images() -> None:
    """Two launches 20 % apart: however many images each has, two are few."""
    for images in (8, 800):
        (p50,), mean = image_statistics([[9.0] * images, [11.0] * images], [0.5])
        for interval in (p50, mean):
            assert interval.low < 9.0 and interval.high > 11.0
    (alone,), _ = image_statistics([[10.0] * 4], [0.5])
    assert (alone.low, alone.high) == (10.0, 10.0)


def test_spread_of_calm_and_of_disturbed_rounds() -> None:
    assert relative_spread([[10.0] * 8] * 3) == 0
    assert relative_spread([[8.0, 9.0, 10.0, 11.0, 12.0]] * 3) == pytest.approx(0.16)
