"""From how values are distributed to the range that eight bits shall span.

Every method chooses one bound T of the magnitude; the range is what lies within it of the values seen, and always
holds zero, which padding needs to be exact: [max(min, -T), min(max, T)].
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from boxwright.calibration.histograms import Distribution, DoubleArray
from boxwright.core.errors import InputError

RangeKind = Literal["minmax", "percentile", "entropy", "mse"]
_NUM_LEVELS = 255
_CANDIDATE_BOUNDS = 64
_ENTROPY_BINS = 4096
_LEAST_MASS = 1e-10


@dataclass(frozen=True, kw_only=True)
class RangeMethod:
    """How a range is chosen.

    Attributes:
        kind: `minmax`, `percentile`, `entropy` (least Kullback-Leibler divergence) or `mse` (least squared error).
        percentile: of the magnitudes that stay inside, for that kind.
    """

    kind: RangeKind = "percentile"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if self.kind not in get_args(RangeKind):
            raise InputError(
                "--method", expected="one of " + ", ".join(get_args(RangeKind)), got=repr(self.kind), fix="pass one"
            )
        if not 50 < self.percentile <= 100:
            raise InputError(
                "--percentile", expected="more than 50, at most 100", got=str(self.percentile), fix="correct it"
            )

    def __str__(self) -> str:
        return f"percentile {self.percentile:g}" if self.kind == "percentile" else self.kind


def choose_range(distribution: Distribution, method: RangeMethod) -> tuple[float, float]:
    """The range (low <= 0 <= high) of a distribution."""
    return _range_within(distribution, _BOUNDS[method.kind](distribution, method))


def _range_within(distribution: Distribution, bound: float) -> tuple[float, float]:
    return max(min(distribution.minimum, 0.0), -bound), min(max(distribution.maximum, 0.0), bound)


def squared_error(distribution: Distribution, low: float, high: float) -> float:
    """Mean squared error of rounding to 255 steps of [low, high] and clipping to it."""
    step = max((high - low) / _NUM_LEVELS, 1e-30)
    excess = np.maximum(distribution.middles - high, 0) + np.maximum(low - distribution.middles, 0)
    inside = excess == 0
    # Zero is represented exactly; other values inside are off by up to half a step, evenly.
    rounding = np.where(distribution.middles == 0, 0.0, step**2 / 12)
    errors = np.where(inside, rounding, excess**2)
    return float((errors * distribution.masses).sum() / max(distribution.masses.sum(), 1.0))


def _minmax_bound(distribution: Distribution, method: RangeMethod) -> float:
    return distribution.largest_magnitude


def _percentile_bound(distribution: Distribution, method: RangeMethod) -> float:
    magnitudes = np.abs(distribution.middles)
    order = np.argsort(magnitudes, kind="stable")
    cumulative = np.cumsum(distribution.masses[order])
    index = int(np.searchsorted(cumulative, method.percentile / 100 * cumulative[-1]))
    index = min(index, len(order) - 1)
    # Within a bin the values are taken as evenly spread.
    mass = distribution.masses[order][index]
    part = (method.percentile / 100 * cumulative[-1] - (cumulative[index] - mass)) / mass
    bound = magnitudes[order][index] + (part - 0.5) * distribution.widths[order][index]
    return float(min(bound, distribution.largest_magnitude))


def _mse_bound(distribution: Distribution, method: RangeMethod) -> float:
    bounds = _candidate_bounds(distribution)
    errors = [squared_error(distribution, *_range_within(distribution, bound)) for bound in bounds]
    return float(bounds[int(np.argmin(errors))])


def _entropy_bound(distribution: Distribution, method: RangeMethod) -> float:
    """Least divergence of the clipped distribution from its rounded self. Source: Migacz, 8-bit inference, GTC 2017.

    Zeros have no say, of which there are many behind a ReLU and in padding: every range represents them exactly.
    """
    distribution = replace(distribution, masses=np.where(distribution.middles == 0, 0.0, distribution.masses))
    if not distribution.masses.any():
        return distribution.largest_magnitude
    bounds = _candidate_bounds(distribution)
    divergences = [_divergence(distribution, *_range_within(distribution, bound)) for bound in bounds]
    return float(bounds[int(np.argmin(divergences))])


def _candidate_bounds(distribution: Distribution) -> DoubleArray:
    """From the largest magnitude down to a thirtieth, evenly in the logarithm, (n,)."""
    largest = max(distribution.largest_magnitude, 1e-12)
    bounds: DoubleArray = largest * np.geomspace(1.0, 1 / 30, _CANDIDATE_BOUNDS)
    return bounds


def _divergence(distribution: Distribution, low: float, high: float) -> float:
    """Kullback-Leibler divergence of a range: fine bins against the same averaged over each quantization step."""
    if high <= low:
        return float("inf")
    fine, outside_low, outside_high = _fine_histogram(distribution, low, high)  # (_ENTROPY_BINS,)
    clipped = fine.copy()
    clipped[0] += outside_low
    clipped[-1] += outside_high
    # Each bin belongs to the level that its middle is rounded to, of _NUM_LEVELS + 1 with both ends.
    steps = np.round((np.arange(_ENTROPY_BINS) + 0.5) * _NUM_LEVELS / _ENTROPY_BINS).astype(np.int64)
    occupied = clipped > 0
    masses = np.bincount(steps, weights=fine)
    counts = np.bincount(steps, weights=occupied)
    averaged = (masses / np.maximum(counts, 1))[steps]
    reference = clipped[occupied] / clipped.sum()
    rounded = np.maximum(averaged[occupied] / max(masses.sum(), 1e-30), 1e-12)
    return float((reference * np.log(reference / rounded)).sum())


def _fine_histogram(distribution: Distribution, low: float, high: float) -> tuple[DoubleArray, float, float]:
    """The masses inside [low, high] on even bins, each interval spread evenly over its width, and those outside.

    Returns:
        (_ENTROPY_BINS,), the mass below and the mass above.
    """
    borders = np.linspace(low, high, _ENTROPY_BINS + 1)
    width = borders[1] - borders[0]
    widths = np.maximum(distribution.widths, width)
    starts, ends = distribution.middles - widths / 2, distribution.middles + widths / 2
    # What fills a bin so, and is as far out as anything, does so on this side of the end.
    shifts = np.maximum(distribution.minimum - starts, 0) - np.maximum(ends - distribution.maximum, 0)
    starts, ends = starts + shifts, ends + shifts
    # The cumulative mass at each border is piecewise linear between the ends of the intervals.
    points = np.concatenate([starts, ends])
    slopes = np.concatenate([distribution.masses / widths, -distribution.masses / widths])
    order = np.argsort(points, kind="stable")
    points, slopes = points[order], np.cumsum(slopes[order])
    cumulative = np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(points))])
    at_borders = np.interp(borders, points, cumulative)
    # What rounding leaves of nothing is nothing: a bin is occupied or it is not.
    masses: DoubleArray = np.diff(at_borders)
    masses[masses < _LEAST_MASS * distribution.masses.sum()] = 0.0
    above = max(float(distribution.masses.sum() - at_borders[-1]), 0.0)
    return masses, float(at_borders[0]), above


_BOUNDS = {
    "minmax": _minmax_bound,
    "percentile": _percentile_bound,
    "entropy": _entropy_bound,
    "mse": _mse_bound,
}
