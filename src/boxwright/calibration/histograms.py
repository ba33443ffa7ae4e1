"""How the values of activation tensors are distributed, gathered in one pass and bounded memory.

A bin is a sign, an exponent and the first bits of the mantissa of a float32: its borders need not be known before the
first value is seen, the relative width is the same everywhere (1/16 of a power of two), and counts of different images
add up in any order. The ends of the distribution are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray

DoubleArray = NDArray[np.float64]
_MANTISSA_BITS = 4
_SHIFT = 23 - _MANTISSA_BITS
# Magnitudes below 2^-14 count as zero, those of 2^18 and more as just below that; the exact ends are kept apart.
_LOWEST_EXPONENT, _HIGHEST_EXPONENT = -14, 18
_FIRST_KEY = (_LOWEST_EXPONENT + 127) << _MANTISSA_BITS
_BINS_A_SIGN = (_HIGHEST_EXPONENT - _LOWEST_EXPONENT) << _MANTISSA_BITS
# Bin 0 holds what counts as zero, then come the positive bins, then the negative ones.
NUM_BINS = 1 + 2 * _BINS_A_SIGN


class ChannelHistograms:
    """A histogram for each channel of a tensor.

    Attributes:
        counts: (C, NUM_BINS) of the values that were sampled; of 64 bits once 32 might not hold them.
        minimum: (C,) of all values, sampled or not; +inf before the first.
        maximum: likewise.
    """

    def __init__(self, num_channels: int) -> None:
        self.counts: NDArray[np.uint32] | NDArray[np.uint64] = np.zeros((num_channels, NUM_BINS), dtype=np.uint32)
        self._most = 0  # no bin holds more
        self.minimum = np.full(num_channels, np.inf, dtype=np.float32)
        self.maximum = np.full(num_channels, -np.inf, dtype=np.float32)

    @property
    def num_channels(self) -> int:
        """C."""
        return len(self.minimum)

    def add(self, values: FloatArray, *, most_values: int = 1 << 20, offset: int = 0) -> None:
        """Count values.

        Args:
            values: (C, n), finite.
            most_values: of the whole tensor that are counted; of more, every k-th position is.
            offset: of the first position that is counted, so that it differs from image to image.
        """
        if values.shape[1] == 0:
            return
        self.minimum = np.minimum(self.minimum, values.min(axis=1))
        self.maximum = np.maximum(self.maximum, values.max(axis=1))
        step = -(-values.size // most_values)
        sampled = values[:, offset % step :: step] if values.shape[1] > step else values
        bins = _bins_of(np.ascontiguousarray(sampled))  # (C, m)
        bins += np.arange(self.num_channels, dtype=np.int64)[:, None] * NUM_BINS
        counted = np.bincount(bins.ravel(), minlength=self.counts.size)
        self._make_room(bins.shape[1])
        self.counts += counted.reshape(self.counts.shape).astype(self.counts.dtype)

    def __add__(self, other: ChannelHistograms) -> ChannelHistograms:
        total = ChannelHistograms(self.num_channels)
        total.counts, total._most = self.counts, self._most
        total._make_room(other._most)
        total.counts = total.counts + other.counts
        total.minimum = np.minimum(self.minimum, other.minimum)
        total.maximum = np.maximum(self.maximum, other.maximum)
        return total

    def _make_room(self, more: int) -> None:
        """Widen the counts where so many more values in one bin might be too much for 32 bits."""
        self._most += more
        if self._most > np.iinfo(self.counts.dtype).max:
            self.counts = self.counts.astype(np.uint64)

    def means(self) -> DoubleArray:
        """Mean of each channel, (C,), from the middles of the bins."""
        totals = np.maximum(self.counts.sum(axis=1, dtype=np.float64), 1)
        result: DoubleArray = (self.counts @ BIN_MIDDLES) / totals
        return result

    def magnitudes(self, quantile: float) -> DoubleArray:
        """Upper border of the bin below which this part of each channel's magnitudes lies, at most the largest (C,)."""
        folded = np.zeros((self.num_channels, 1 + _BINS_A_SIGN), dtype=np.float64)
        folded += self.counts[:, : 1 + _BINS_A_SIGN]
        folded[:, 1:] += self.counts[:, 1 + _BINS_A_SIGN :]
        cumulative = np.cumsum(folded, axis=1)
        reached = cumulative >= quantile * cumulative[:, -1:]
        borders = _UPPER_MAGNITUDES[reached.argmax(axis=1)]
        result: DoubleArray = np.minimum(borders, np.maximum(np.abs(self.minimum), np.abs(self.maximum)))
        return result

    def distribution(self, factors: DoubleArray | None = None) -> Distribution:
        """The distribution of the whole tensor after each channel was divided by its factor (C,)."""
        divisors = np.ones(self.num_channels) if factors is None else factors
        channels, bins = np.nonzero(self.counts)
        # A bin ends where its channel does: white in images, for one, is the largest value and not beyond it.
        lowest, highest = (np.where(bins > 0, ends[channels], 0.0) for ends in (self.minimum, self.maximum))
        starts = np.clip(BIN_MIDDLES[bins] - BIN_WIDTHS[bins] / 2, lowest, highest) / divisors[channels]
        ends = np.clip(BIN_MIDDLES[bins] + BIN_WIDTHS[bins] / 2, lowest, highest) / divisors[channels]
        middles = (starts + ends) / 2
        order = np.argsort(middles, kind="stable")
        return Distribution(
            middles=middles[order],
            widths=(ends - starts)[order],
            masses=self.counts[channels, bins][order].astype(np.float64),
            minimum=float((self.minimum / divisors).min()),
            maximum=float((self.maximum / divisors).max()),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Distribution:
    """Weighted intervals in ascending order of their middles.

    Attributes:
        middles: (n,).
        widths: (n,).
        masses: (n,) number of values.
        minimum: exact.
        maximum: exact.
    """

    middles: DoubleArray
    widths: DoubleArray
    masses: DoubleArray
    minimum: float
    maximum: float

    @property
    def largest_magnitude(self) -> float:
        """Of any value."""
        return max(abs(self.minimum), abs(self.maximum))


def _bins_of(values: FloatArray) -> NDArray[np.int64]:
    bits = values.view(np.int32)
    keys = ((bits & 0x7FFFFFFF) >> _SHIFT) - (_FIRST_KEY - 1)
    keys = np.clip(keys, 0, _BINS_A_SIGN)
    keys += ((bits < 0) & (keys > 0)) * np.int32(_BINS_A_SIGN)
    bins: NDArray[np.int64] = keys.astype(np.int64)
    return bins


def _positive_borders() -> DoubleArray:
    """Lower borders of the positive bins and the upper border of the last, (_BINS_A_SIGN + 1,)."""
    keys = np.arange(_BINS_A_SIGN + 1, dtype=np.int64)
    exponents = (keys >> _MANTISSA_BITS) + _LOWEST_EXPONENT
    mantissas = 1 + (keys & ((1 << _MANTISSA_BITS) - 1)) / (1 << _MANTISSA_BITS)
    borders: DoubleArray = mantissas * np.exp2(exponents.astype(np.float64))
    return borders


_BORDERS = _positive_borders()
_POSITIVE_MIDDLES = (_BORDERS[:-1] + _BORDERS[1:]) / 2
BIN_MIDDLES: DoubleArray = np.concatenate([[0.0], _POSITIVE_MIDDLES, -_POSITIVE_MIDDLES])
BIN_WIDTHS: DoubleArray = np.concatenate([[0.0], np.diff(_BORDERS), np.diff(_BORDERS)])
_UPPER_MAGNITUDES: DoubleArray = np.concatenate([[0.0], _BORDERS[1:]])
