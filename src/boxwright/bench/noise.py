"""How sure a measured time is, and whether two of them differ.

Times are measured in rounds, and rounds in launches: a launch is a fresh process of every candidate, a round lets each
of them run a block of images in turn. What disturbs the machine for a while disturbs the rounds of that while, and
what differs from process to process (where its memory lies, for one) differs between launches. So a launch is what is
drawn with replacement (a block bootstrap; neighbouring images and rounds are not independent), and candidates of one
run are compared round by round. A bootstrap of few blocks knows too little of their spread: its standard error is
widened by sqrt(n / (n - 1)) and multiplied with Student's t of n - 1 degrees of freedom in the place of 1.96.

Source: Davison and Hinkley, Bootstrap Methods and their Application, 1997, sec. 3.8; Hesterberg, What Teachers Should
Know About the Bootstrap, The American Statistician 69, 2015, sec. 3 (narrowness bias).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DoubleArray = NDArray[np.float64]
# Block times in ms: a list for each launch of a number for each round.
Rounds = Sequence[Sequence[float]]
Verdict = Literal["equal", "faster", "slower"]

# Smaller differences are not worth a word, and no machine that does other things too can promise them.
EQUAL_WITHIN = 0.02
# High over low end of an interval, beyond which it says next to nothing.
_MOST_SPREAD = 1.5
_RESAMPLES = 1000
_SEED = 20240501
# Student's t that 95 % lie within, by degrees of freedom; between them the inverse is interpolated.
_STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 10: 2.228, 12: 2.179,
              15: 2.131, 20: 2.086, 30: 2.042, 60: 2.000, float("inf"): 1.960}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number and its 95 % interval."""

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

    def in_words(self) -> str:
        """The verdict; where next to nothing is known, that."""
        if self.verdict != "equal":
            return f"the first is {self.verdict}"
        is_known = self.high <= _MOST_SPREAD * self.low
        return "equal within the noise" if is_known else "cannot be told apart by so few launches, or so disturbed ones"


def typical_time(rounds: Rounds) -> Interval:
    """The mean over launches of the median of their rounds, in their unit."""
    centre, error, degrees = _mean_and_error(np.log(_launch_medians(_as_arrays(rounds))))
    return _interval(float(np.exp(centre)), error, degrees)


def image_statistics(
    launches: Sequence[Sequence[float]], quantiles: Sequence[float]
) -> tuple[list[Interval], Interval]:
    """Quantiles and mean over all images, with intervals from launches drawn with replacement.

    Args:
        launches: times of the images of each launch; where there is one launch alone, of each of its rounds.
        quantiles: probabilities.

    Returns:
        An interval for each quantile, and one for the mean.
    """
    blocks = [np.asarray(times, dtype=np.float64) for times in launches]
    every_image = np.concatenate(blocks)
    values = [*np.quantile(every_image, quantiles).tolist(), float(every_image.mean())]
    random = np.random.default_rng(_SEED)
    estimates = []
    for drawn in random.integers(0, len(blocks), (_RESAMPLES if len(blocks) > 1 else 1, len(blocks))):
        sample = np.concatenate([blocks[index] for index in drawn])
        estimates.append([*np.quantile(sample, quantiles).tolist(), float(sample.mean())])
    errors = np.log(np.array(estimates)).std(axis=0) * _narrowness(len(blocks))
    intervals = [_interval(value, error, len(blocks) - 1) for value, error in zip(values, errors.tolist(), strict=True)]
    return intervals[:-1], intervals[-1]


def compare_interleaved(first: Rounds, second: Rounds) -> Comparison:
    """Compare two candidates that were measured in turn, round by round.

    Args:
        first: block times of one.
        second: of the other; the same launches and rounds.
    """
    log_ratios = [np.log(one) - np.log(other) for one, other in zip(_as_arrays(first), _as_arrays(second), strict=True)]
    return _judge(*_mean_and_error(_launch_medians(log_ratios)))


def compare_separate(first: Rounds, second: Rounds) -> Comparison:
    """Compare two times that were measured in different runs, where nothing pairs their rounds.

    Source of the degrees of freedom: Welch, The generalization of Student's problem, Biometrika 34, 1947.
    """
    (one, one_error, one_degrees), (other, other_error, other_degrees) = (
        _mean_and_error(np.log(_launch_medians(_as_arrays(rounds)))) for rounds in (first, second)
    )
    error = float(np.hypot(one_error, other_error))
    shares = [
        (entry / error) ** 4 / degrees
        for entry, degrees in ((one_error, one_degrees), (other_error, other_degrees))
        if entry > 0
    ]
    return _judge(one - other, error, 1 / sum(shares) if shares else min(one_degrees, other_degrees))


def relative_spread(rounds: Rounds) -> float:
    """How much the block times of a launch differ: half the range of their middle 80 %, over their median."""
    ends = np.array([np.quantile(times, [0.1, 0.5, 0.9]) for times in _as_arrays(rounds)])  # (launches, 3)
    return float(np.median((ends[:, 2] - ends[:, 0]) / 2 / ends[:, 1]))


def _as_arrays(rounds: Rounds) -> list[DoubleArray]:
    assert len(rounds) > 0 and all(len(times) > 0 for times in rounds)
    return [np.asarray(times, dtype=np.float64) for times in rounds]


def _launch_medians(launches: Sequence[DoubleArray]) -> DoubleArray:
    """The median of each launch, which a disturbed round does not move; of one launch alone, its rounds."""
    return launches[0] if len(launches) == 1 else np.array([np.median(rounds) for rounds in launches])


def _mean_and_error(blocks: DoubleArray) -> tuple[float, float, float]:
    """The mean of blocks, its standard error, and the degrees of freedom.

    Of a mean, what drawing blocks with replacement ends in needs no drawing: their standard deviation over sqrt(n).
    """
    error = float(blocks.std() / np.sqrt(len(blocks))) * _narrowness(len(blocks))
    return float(blocks.mean()), error, len(blocks) - 1


def _narrowness(num_blocks: int) -> float:
    """What the bootstrap's standard error is too small by, since it knows the blocks' mean from themselves."""
    return float(np.sqrt(num_blocks / (num_blocks - 1))) if num_blocks > 1 else 0.0


def _student_t(degrees: float) -> float:
    inverses = [1 / known for known in _STUDENT_T]  # falling
    return float(np.interp(1 / max(degrees, 1.0), inverses[::-1], list(_STUDENT_T.values())[::-1]))


def _interval(value: float, log_error: float, degrees: float) -> Interval:
    """In logarithms, so that no time is negative."""
    width = _student_t(degrees) * log_error
    return Interval(value=value, low=float(value * np.exp(-width)), high=float(value * np.exp(width)))


def _judge(log_ratio: float, log_error: float, degrees: float) -> Comparison:
    width = _student_t(degrees) * log_error
    ratio = float(np.exp(log_ratio))
    # Where there is but one block, nothing is known of the noise.
    if degrees < 1 or abs(log_ratio) <= width or abs(ratio - 1) <= EQUAL_WITHIN:
        verdict: Verdict = "equal"
    else:
        verdict = "slower" if ratio > 1 else "faster"
    return Comparison(
        ratio=ratio, low=float(np.exp(log_ratio - width)), high=float(np.exp(log_ratio + width)), verdict=verdict
    )
