"""AutoAnchor: how well anchors serve a data set, and better ones by k-means and random mutation.

Source: the public description of YOLOv5's AutoAnchor (its documentation): best possible recall at a ratio of sides of
4, k-means over the sizes as a start, and a genetic search that keeps a mutation where the fitness grows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from boxwright.models.common.kmeans_anchors import FloatArray, check_sizes, kmeans_anchors

RATIO_THRESHOLD = 4.0
_GENERATIONS = 1000
# More objects than this change the anchors by less than their spread.
_MOST_SIZES = 20_000
_MUTATION_PROBABILITY = 0.9
_MUTATION_SPREAD = 0.1
_MOST_CHANGE = (0.3, 3.0)


def anchor_similarity(sizes_wh: NDArray[np.floating], anchors_wh: NDArray[np.floating]) -> FloatArray:
    """How well each anchor's shape fits each object: the worse of the ratios of the sides, (M, k) in (0, 1]."""
    ratios = np.asarray(sizes_wh, np.float64)[:, None] / np.asarray(anchors_wh, np.float64)[None]  # (M, k, 2)
    similarity: FloatArray = np.minimum(ratios, 1 / ratios).min(axis=2)
    return similarity


def best_possible_recall(
    sizes_wh: NDArray[np.floating], anchors_wh: NDArray[np.floating], threshold: float = RATIO_THRESHOLD
) -> float:
    """The share of objects (M, 2) that at least one anchor (k, 2) may learn."""
    return float((anchor_similarity(sizes_wh, anchors_wh).max(axis=1) > 1 / threshold).mean())


def anchor_fitness(
    sizes_wh: NDArray[np.floating], anchors_wh: NDArray[np.floating], threshold: float = RATIO_THRESHOLD
) -> float:
    """The mean over the objects of the best anchor's similarity; those that no anchor may learn count 0."""
    best = anchor_similarity(sizes_wh, anchors_wh).max(axis=1)
    return float(np.where(best > 1 / threshold, best, 0.0).mean())


def auto_anchors(
    sizes_wh: NDArray[np.floating],
    k: int,
    seed: int = 0,
    *,
    threshold: float = RATIO_THRESHOLD,
    generations: int = _GENERATIONS,
) -> FloatArray:
    """Anchors for these objects.

    Args:
        sizes_wh: (M, 2) widths and heights of objects, in pixels of the network's input.
        k: number of anchors.
        seed: of k-means and of the mutations.
        threshold: the ratio of sides from which an anchor does not learn an object.
        generations: mutations that are tried.

    Returns:
        (k, 2) by ascending area.

    Raises:
        InputError: where there are fewer than k different sizes.
    """
    sizes = check_sizes(sizes_wh, k)
    generator = np.random.default_rng(seed)
    if len(sizes) > _MOST_SIZES:
        sizes = sizes[generator.choice(len(sizes), _MOST_SIZES, replace=False)]
    anchors = kmeans_anchors(sizes, k, seed)
    fitness = anchor_fitness(sizes, anchors, threshold)
    for _ in range(generations):
        mutant = anchors * _mutation(k, generator)
        reached = anchor_fitness(sizes, mutant, threshold)
        if reached > fitness:
            anchors, fitness = mutant, reached
    return anchors[np.argsort(anchors.prod(axis=1), kind="stable")]


def _mutation(k: int, generator: np.random.Generator) -> FloatArray:
    """Factors (k, 2) about 1, of a strength that differs from one mutation to the next."""
    is_mutated = generator.random((k, 2)) < _MUTATION_PROBABILITY
    strength = generator.random() * generator.normal(size=(k, 2)) * _MUTATION_SPREAD
    factors: FloatArray = np.clip(np.where(is_mutated, 1 + strength, 1.0), *_MOST_CHANGE)
    return factors
