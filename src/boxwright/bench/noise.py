"""How sure a measured time is, and whether two of them differ.

Times are measured in rounds, and rounds in launches: a launch is a fresh process of every candidate, a round lets each
of them run a block of images in turn. What disturbs the machine for a while disturbs the rounds of that while, and
what differs from process to process (where its memory lies, for one) differs between launches. So resampling is done by
launch and round, never by image, and candidates of one run are compared round by round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DoubleArray = NDArray[np.float64]
# Block times in ms: a list for each launch of a number for each round, all launches of equally many rounds.
Rounds = Sequence[Sequence[float]]
Verdict = Literal["equal", "faster", "slower"]

CONFIDENCE = 0.95
# Smaller differences are not worth a word, and no machine that does other things too can promise them.
EQUAL_WITHIN = 0.02
_RESAMPLES = 2000
_SEED = 20240501


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and the range that holds it in 95 of 100 repetitions."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """How one time compares with another.

    Attributes:
        ratio: of the first to the second.
        low: end of its 95 % interval.
        high: the other end.
        verdict: of the first: `equal` where the interval holds 1 or the ratio lies within 2 % of it.
    """

    ratio: float
    low: float
    high: float
    verdict: Verdict


def typical_time(rounds: Rounds) -> Interval:
    """The median over all rounds, in their unit."""
    times = _as_array(rounds)
    low, high = _ends(np.median(_resamples(times), axis=(1, 2)))
    return Interval(value=float(np.median(times)), low=low, high=high)


def mean_time(rounds: Rounds) -> Interval:
    """The mean over all rounds, in their unit."""
    times = _as_array(rounds)
    low, high = _ends(_resamples(times).mean(axis=(1, 2)))
    return Interval(value=float(times.mean()), low=low, high=high)


def compare_interleaved(first: Rounds, second: Rounds) -> Comparison:
    """Compare two candidates that were measured in turn, round by round.

    Args:
        first: block times of one.
        second: of the other; the same launches and rounds.
    """
    differences = np.log(_as_array(first)) - np.log(_as_array(second))
    return _judge(float(np.median(differences)), np.median(_resamples(differences), axis=(1, 2)))


def compare_separate(first: Rounds, second: Rounds) -> Comparison:
    """Compare two times that were measured in different runs, where nothing pairs their rounds."""
    logs = [np.log(_as_array(rounds)) for rounds in (first, second)]
    medians = [np.median(_resamples(times, seed), axis=(1, 2)) for seed, times in enumerate(logs)]
    return _judge(float(np.median(logs[0]) - np.median(logs[1])), medians[0] - medians[1])


def relative_spread(rounds: Rounds) -> float:
    """How much the block times of a launch differ: half the range of their middle 80 %, over their median."""
    low, middle, high = np.quantile(_as_array(rounds), [0.1, 0.5, 0.9], axis=1)
    return float(np.median((high - low) / 2 / middle))


def _as_array(rounds: Rounds) -> DoubleArray:
    times = np.asarray(rounds, dtype=np.float64)  # (launches, rounds)
    assert times.ndim == 2 and times.size > 0
    return times


def _resamples(values: DoubleArray, seed: int = 0) -> DoubleArray:
    """Launches drawn with replacement, and in each its rounds drawn with replacement, (resamples, launches, rounds)."""
    random = np.random.default_rng(_SEED + seed)
    launches, rounds = values.shape
    drawn_launches = random.integers(0, launches, (_RESAMPLES, launches, 1))
    drawn_rounds = random.integers(0, rounds, (_RESAMPLES, launches, rounds))
    drawn: DoubleArray = values[drawn_launches, drawn_rounds]
    return drawn


def _ends(estimates: DoubleArray) -> tuple[float, float]:
    low, high = np.quantile(estimates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _judge(log_ratio: float, estimates: DoubleArray) -> Comparison:
    low, high = _ends(estimates)
    ratio = float(np.exp(log_ratio))
    if low <= 0 <= high or abs(ratio - 1) <= EQUAL_WITHIN:
        verdict: Verdict = "equal"
    else:
        verdict = "slower" if ratio > 1 else "faster"
    return Comparison(ratio=ratio, low=float(np.exp(low)), high=float(np.exp(high)), verdict=verdict)
