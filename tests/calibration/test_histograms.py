"""Histograms against what NumPy counts directly, in one pass and bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from boxwright.calibration.histograms import BIN_MIDDLES, NUM_BINS, ChannelHistograms

_BINS_A_SIGN = (NUM_BINS - 1) // 2


def values_of_every_size(num_channels: int, count: int, seed: int = 0) -> NDArray[np.float32]:
    """(C, n) of both signs, from far below what counts as zero to far above the last bin, with zeros."""
    random = np.random.default_rng(seed)
    magnitudes = np.exp2(random.uniform(-20, 22, (num_channels, count)))
    values = magnitudes * random.choice([-1, 0, 1], magnitudes.shape, p=[0.4, 0.2, 0.4])
    return values.astype(np.float32)


def counted_directly(channel: NDArray[np.float32]) -> NDArray[np.int64]:
    """Counts of a channel by `numpy.histogram` on the borders: sixteen to each power of two from 2^-14 to 2^18."""
    borders = np.array([(1 + part / 16) * 2.0**power for power in range(-14, 18) for part in range(16)] + [np.inf])
    assert len(borders) == _BINS_A_SIGN + 1
    inside = channel[np.abs(channel) >= 2.0**-14]
    positive, negative = (np.histogram(sign * inside, borders)[0] for sign in (1, -1))
    return np.concatenate([[len(channel) - len(inside)], positive, negative])


def test_one_pass_counts_what_a_direct_computation_counts() -> None:
    values = values_of_every_size(3, 4000)
    histograms = ChannelHistograms(3)
    for part in np.split(values, 8, axis=1):
        histograms.add(part)
    for channel in range(3):
        np.testing.assert_array_equal(histograms.counts[channel], counted_directly(values[channel]))
    np.testing.assert_array_equal(histograms.minimum, values.min(axis=1))
    np.testing.assert_array_equal(histograms.maximum, values.max(axis=1))


def test_folds_add_up_to_the_whole() -> None:
    parts = [values_of_every_size(2, 500, seed) for seed in range(3)]
    folds = []
    for part in parts:
        folds.append(ChannelHistograms(2))
        folds[-1].add(part)
    whole = ChannelHistograms(2)
    whole.add(np.concatenate(parts, axis=1))
    total = folds[0] + folds[1] + folds[2]
    np.testing.assert_array_equal(total.counts, whole.counts)
    np.testing.assert_array_equal(total.maximum, whole.maximum)
    assert folds[0].counts.sum() == 2 * 500  # left as it was


def test_a_bin_is_no_wider_than_a_sixteenth() -> None:
    values = np.exp2(np.random.default_rng(1).uniform(-14, 18, 2000)).astype(np.float32)
    for sign in (1, -1):
        for value in values:
            histograms = ChannelHistograms(1)
            histograms.add(np.array([[sign * value]], dtype=np.float32))
            (found,) = np.nonzero(histograms.counts[0])
            assert BIN_MIDDLES[found[0]] == pytest.approx(sign * value, rel=1 / 32)


def test_memory_does_not_grow_with_images() -> None:
    histograms = ChannelHistograms(4)
    size = histograms.counts.nbytes
    assert histograms.counts.shape == (4, NUM_BINS)
    for seed in range(50):
        histograms.add(values_of_every_size(4, 1000, seed), most_values=400, offset=seed)
    assert histograms.counts.nbytes == size
    # Of each image no more than was asked for was counted, and of each channel as much.
    np.testing.assert_array_equal(histograms.counts.sum(axis=1), [50 * 100] * 4)


def test_the_ends_are_exact_though_not_all_values_are_counted() -> None:
    values = np.full((1, 1000), 0.5, dtype=np.float32)
    values[0, 501], values[0, 777] = -3.25, 9.125
    histograms = ChannelHistograms(1)
    histograms.add(values, most_values=10)
    assert (histograms.minimum[0], histograms.maximum[0]) == (-3.25, 9.125)
    assert histograms.counts.sum() == 10


def test_counts_do_not_wrap() -> None:
    zeros = np.zeros((1, 1 << 16), dtype=np.float32)
    histograms = ChannelHistograms(1)
    histograms.add(zeros)
    for _ in range(16):
        histograms = histograms + histograms
    assert histograms.counts[0, 0] == 2**32  # by adding folds
    almost = ChannelHistograms(1)
    almost.add(zeros[:, 1:])
    for _ in range(16):
        almost = almost + almost
    assert almost.counts[0, 0] == 2**32 - 2**16 and almost.counts.dtype == np.uint32
    almost.add(zeros)  # by one image more
    assert almost.counts[0, 0] == 2**32
    assert almost.means().tolist() == [0.0] and almost.distribution().masses.tolist() == [2.0**32]


def test_means_and_quantiles_of_each_channel() -> None:
    random = np.random.default_rng(2)
    values = np.stack([random.uniform(0, 8, 20000), random.uniform(-2, 0, 20000)]).astype(np.float32)
    histograms = ChannelHistograms(2)
    histograms.add(values)
    np.testing.assert_allclose(histograms.means(), [4, -1], rtol=0.02)
    np.testing.assert_allclose(histograms.magnitudes(0.5), [4, 1], rtol=1 / 16)
    np.testing.assert_allclose(histograms.magnitudes(1.0), np.abs(values).max(axis=1))


def test_a_distribution_is_of_all_channels_divided_by_their_factors() -> None:
    histograms = ChannelHistograms(2)
    histograms.add(np.array([[1.0, 2.0, 2.0], [10.0, -40.0, 40.0]], dtype=np.float32))
    found = histograms.distribution(np.array([1.0, 10.0]))
    np.testing.assert_allclose(found.middles, [-4, 1, 1, 2, 4], rtol=1 / 31)
    assert found.masses.tolist() == [1, 1, 1, 2, 1]
    assert (found.minimum, found.maximum, found.largest_magnitude) == (-4.0, 4.0, 4.0)
