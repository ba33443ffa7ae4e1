"""Haar features over integral images, with the very arithmetic of OpenCV's evaluator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
Windows = NDArray[np.uint8]
# OpenCV looks at no window whose grey levels deviate by this or less: nothing is to be seen there.
_LEAST_DEVIATION = 10.0


@dataclass(frozen=True)
class WeightedRectangle:
    """A rectangle of a window, in pixels, and what the sum of its pixels counts."""

    x: int
    y: int
    width: int
    height: int
    weight: float


HaarFeature = tuple[WeightedRectangle, ...]
# How many bars each kind of feature has across and down.
_BARS = ((2, 1), (1, 2), (3, 1), (1, 3), (3, 3), (2, 2))


def haar_features(window_hw: tuple[int, int]) -> Iterator[HaarFeature]:
    """All upright features of two, three and four bars in a window, the weights of each summing to zero.

    Source: Viola and Jones 2001, section 2; the centre-surround feature is of Lienhart and Maydt 2002.
    """
    height, width = window_hw
    for y in range(height):
        for x in range(width):
            for h in range(1, height - y + 1):
                yield from _features_of_height(x, y, h, window_hw)


def sample_features(window_hw: tuple[int, int], count: int, random: np.random.Generator) -> tuple[HaarFeature, ...]:
    """So many of all features, drawn without repetition; all where there are no more."""
    counts = _counts(window_hw)  # (H, W, H)
    ends = counts.cumsum()
    if ends[-1] <= count:
        return tuple(haar_features(window_hw))
    chosen = np.sort(random.choice(int(ends[-1]), size=count, replace=False))
    # A window of 96x96 has 43 million features: only those at the places of chosen ones are listed.
    features: list[HaarFeature] = []
    for index, place in zip(chosen, np.searchsorted(ends, chosen, side="right"), strict=True):
        y, x, row = (int(entry) for entry in np.unravel_index(place, counts.shape))
        at_place = _features_of_height(x, y, row + 1, window_hw)
        features.append(next(islice(at_place, int(index - ends[place] + counts[y, x, row]), None)))
    return tuple(features)


class IntegralWindows:
    """The integral images of many windows of one size, and how each is normalised.

    Attributes:
        is_flat: (N,) of windows in which OpenCV does not look.
    """

    def __init__(self, windows: Windows) -> None:
        """Prepare windows (N, H, W) uint8."""
        self._sums = _integral(windows.astype(np.int64))  # (N, H + 1, W + 1)
        # The mean and the deviation are those of the window less a border of one pixel.
        inner = windows[:, 1:-1, 1:-1].astype(np.int64)
        area = float(inner.shape[1] * inner.shape[2])
        spread = area * (inner * inner).sum(axis=(1, 2)) - inner.sum(axis=(1, 2)).astype(np.float64) ** 2  # (N,)
        norm = np.sqrt(np.maximum(spread, 1.0))
        self._factors: FloatArray = (1.0 / norm).astype(np.float32)
        self.is_flat: NDArray[np.bool_] = (spread <= 0) | (area * self._factors >= 1.0 / _LEAST_DEVIATION)

    def values(self, feature: HaarFeature) -> FloatArray:
        """The value (N,) of a feature in every window."""
        total = np.zeros(len(self._factors), dtype=np.float32)
        for rectangle in feature:
            x, y, right, bottom = _corners(rectangle)
            sums = self._sums
            pixels = sums[:, bottom, right] - sums[:, y, right] - sums[:, bottom, x] + sums[:, y, x]
            total += np.float32(rectangle.weight) * pixels.astype(np.float32)
        result: FloatArray = total * self._factors
        return result

    def table(self, features: Sequence[HaarFeature]) -> FloatArray:
        """The values (N, F) of features in every window."""
        table = np.empty((len(self._factors), len(features)), dtype=np.float32, order="F")
        for column, feature in enumerate(features):
            table[:, column] = self.values(feature)
        return table


def _counts(window_hw: tuple[int, int]) -> NDArray[np.int64]:
    """How many features `_features_of_height` gives at each y, x and height - 1: (H, W, H)."""
    height, width = window_hw
    counts = np.zeros((height, width, height), dtype=np.int64)
    room_below, room_right = height - np.arange(height)[:, None], width - np.arange(width)
    for across, down in _BARS:
        fits = down * (np.arange(height) + 1) <= room_below  # (H, H) y, height - 1
        counts += fits[:, None, :] * (room_right // across)[None, :, None]
    return counts


def _features_of_height(x: int, y: int, h: int, window_hw: tuple[int, int]) -> Iterator[HaarFeature]:
    """The features whose first bar lies at x, y and is h pixels high, of any width."""
    for w in range(1, window_hw[1] - x + 1):
        yield from _features_at(x, y, w, h, window_hw)


def _features_at(x: int, y: int, w: int, h: int, window_hw: tuple[int, int]) -> Iterator[HaarFeature]:
    """The features whose bars are of w by h pixels and whose first lies at x, y."""
    height, width = window_hw
    if x + 2 * w <= width:
        yield _bars((x, y, 2 * w, h), (x + w, y, w, h), 2.0)
    if y + 2 * h <= height:
        yield _bars((x, y, w, 2 * h), (x, y + h, w, h), 2.0)
    if x + 3 * w <= width:
        yield _bars((x, y, 3 * w, h), (x + w, y, w, h), 3.0)
    if y + 3 * h <= height:
        yield _bars((x, y, w, 3 * h), (x, y + h, w, h), 3.0)
    if x + 3 * w <= width and y + 3 * h <= height:
        yield _bars((x, y, 3 * w, 3 * h), (x + w, y + h, w, h), 9.0)
    if x + 2 * w <= width and y + 2 * h <= height:
        whole = WeightedRectangle(x, y, 2 * w, 2 * h, -1.0)
        yield whole, WeightedRectangle(x, y, w, h, 2.0), WeightedRectangle(x + w, y + h, w, h, 2.0)


def _bars(whole: tuple[int, int, int, int], part: tuple[int, int, int, int], weight: float) -> HaarFeature:
    return WeightedRectangle(*whole, -1.0), WeightedRectangle(*part, weight)


def _corners(rectangle: WeightedRectangle) -> tuple[int, int, int, int]:
    return rectangle.x, rectangle.y, rectangle.x + rectangle.width, rectangle.y + rectangle.height


def _integral(windows: NDArray[Any]) -> NDArray[np.int64]:
    """Sums of all pixels above and to the left, with a row and a column of zeros before them."""
    count, height, width = windows.shape
    sums = np.zeros((count, height + 1, width + 1), dtype=np.int64)
    sums[:, 1:, 1:] = windows.cumsum(axis=1).cumsum(axis=2)
    return sums
