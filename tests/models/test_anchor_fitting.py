"""Anchors from the data: k-means by overlap and AutoAnchor, against values that one can compute by hand."""

from __future__ import annotations

import numpy as np
import pytest

from boxwright.core.errors import InputError
from boxwright.models.common.auto_anchor import (
    anchor_fitness,
    anchor_similarity,
    auto_anchors,
    best_possible_recall,
)
from boxwright.models.common.kmeans_anchors import kmeans_anchors, mean_best_overlap, size_overlaps


def three_crowds(count: int = 60) -> np.ndarray:
    """Sizes about (10, 20), (50, 40) and (200, 100)."""
    generator = np.random.default_rng(3)
    middles = np.array([[10, 20], [50, 40], [200, 100]], dtype=float)
    return np.concatenate([middle * generator.uniform(0.9, 1.1, (count, 2)) for middle in middles])


def test_overlaps_of_sizes_about_one_centre() -> None:
    overlaps = size_overlaps(np.array([[10.0, 20.0], [4.0, 4.0]]), np.array([[20.0, 10.0], [2.0, 8.0]]))
    # 10x10 of 300; 2x8 of 200; 4x4 of 200; 2x4 of 24
    np.testing.assert_allclose(overlaps, [[100 / 300, 16 / 200], [16 / 200, 8 / 24]])


def test_kmeans_finds_the_crowds_by_ascending_area() -> None:
    anchors = kmeans_anchors(three_crowds(), 3, seed=1)
    np.testing.assert_allclose(anchors, [[10, 20], [50, 40], [200, 100]], rtol=0.03)
    assert mean_best_overlap(three_crowds(), anchors) > 0.85
    assert (kmeans_anchors(three_crowds(), 3, seed=1) == anchors).all()


def test_small_and_large_objects_count_alike() -> None:
    """By the distance of the sides, the spread of the large ones would take two of the three."""
    generator = np.random.default_rng(0)
    large = np.array([300.0, 300.0]) * generator.uniform(0.9, 1.1, (300, 2))
    small = np.concatenate([np.tile([[4.0, 4.0]], (50, 1)), np.tile([[4.0, 16.0]], (50, 1))])
    anchors = kmeans_anchors(np.concatenate([large, small]), 3, seed=0)
    np.testing.assert_allclose(anchors[:2], [[4, 4], [4, 16]])


def test_more_anchors_overlap_more() -> None:
    sizes = np.random.default_rng(5).lognormal(4, 0.8, (400, 2))
    overlaps = [mean_best_overlap(sizes, kmeans_anchors(sizes, k, seed=0)) for k in (1, 3, 9)]
    assert overlaps[0] < overlaps[1] < overlaps[2]


@pytest.mark.parametrize(
    ("sizes", "k"),
    [(np.zeros((0, 2)), 1), (np.ones((50, 2)), 2), (np.array([[3.0, 0.0], [2.0, 2.0]]), 2), (np.ones((5, 2)), 0)],
    ids=["none", "all the same", "empty boxes do not count", "no anchors"],
)
def test_too_few_sizes(sizes: np.ndarray, k: int) -> None:
    with pytest.raises(InputError, match="different sizes") as caught:
        kmeans_anchors(sizes, k)
    assert "\n" not in str(caught.value)


def test_similarity_and_recall_by_hand() -> None:
    sizes, anchors = np.array([[10.0, 10.0], [100.0, 10.0], [41.0, 10.0]]), np.array([[10.0, 10.0], [50.0, 20.0]])
    np.testing.assert_allclose(anchor_similarity(sizes, anchors), [[1, 0.2], [0.1, 0.5], [10 / 41, 0.5]])
    assert best_possible_recall(sizes, anchors) == 1.0
    assert best_possible_recall(sizes, anchors[:1]) == pytest.approx(1 / 3)
    # 1 for the first; the others lie beyond a ratio of 4 and count nothing
    assert anchor_fitness(sizes, anchors[:1]) == pytest.approx(1 / 3)


def test_the_search_betters_kmeans() -> None:
    sizes = np.random.default_rng(5).lognormal(4, 0.8, (300, 2))
    start = kmeans_anchors(sizes, 9, seed=0)
    found = auto_anchors(sizes, 9, seed=0, generations=300)
    assert anchor_fitness(sizes, found) > anchor_fitness(sizes, start)
    assert found.shape == (9, 2) and (np.diff(found.prod(axis=1)) >= 0).all()
    assert (auto_anchors(sizes, 9, seed=0, generations=300) == found).all()
