"""Anchor sizes by k-means over the sizes of objects, with one less the overlap as the distance.

Source: Redmon and Farhadi, YOLO9000, CVPR 2017, sec. 2 "Dimension Clusters".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import InputError

FloatArray = NDArray[np.float64]
_MOST_ROUNDS = 300
# K-means ends in the nearest valley: of several starts the best counts.
_STARTS = 10
# More objects than this change the anchors by less than their spread.
_MOST_SIZES = 20_000


def size_overlaps(sizes_wh: FloatArray, anchors_wh: FloatArray) -> FloatArray:
    """IoU (M, k) of boxes of these sizes (M, 2) with boxes of those (k, 2) about the same centre."""
    intersection = np.minimum(sizes_wh[:, None], anchors_wh[None]).prod(axis=2)
    union = sizes_wh.prod(axis=1)[:, None] + anchors_wh.prod(axis=1)[None] - intersection
    overlaps: FloatArray = intersection / union
    return overlaps


def kmeans_anchors(sizes_wh: NDArray[np.floating], k: int, seed: int = 0) -> FloatArray:
    """The k sizes that overlap the objects' sizes best.

    Args:
        sizes_wh: (M, 2) widths and heights of objects, in pixels of the network's input.
        k: number of anchors.
        seed: of the choice of the first centres (far from each other, as k-means++ draws them).

    Returns:
        (k, 2) by ascending area.

    Raises:
        InputError: where there are fewer than k different sizes.
    """
    sizes = check_sizes(sizes_wh, k)
    generator = np.random.default_rng(seed)
    if len(sizes) > _MOST_SIZES:
        sizes = check_sizes(sizes[generator.choice(len(sizes), _MOST_SIZES, replace=False)], k)
    found = [_cluster(sizes, _first_centres(sizes, k, generator)) for _ in range(_STARTS)]
    best = max(found, key=lambda centres: mean_best_overlap(sizes, centres))
    return best[np.argsort(best.prod(axis=1), kind="stable")]


def _cluster(sizes: FloatArray, centres: FloatArray) -> FloatArray:
    """K-means from these centres (k, 2)."""
    centres = centres.copy()
    nearest = np.full(len(sizes), -1)
    for _ in range(_MOST_ROUNDS):
        overlaps = size_overlaps(sizes, centres)
        chosen = overlaps.argmax(axis=1)
        if (chosen == nearest).all():
            break
        nearest = chosen
        for index in range(len(centres)):
            members = sizes[nearest == index]
            # A centre that nobody is nearest to moves to the size that is served worst.
            centres[index] = members.mean(axis=0) if len(members) else sizes[overlaps.max(axis=1).argmin()]
    return centres


def mean_best_overlap(sizes_wh: NDArray[np.floating], anchors_wh: NDArray[np.floating]) -> float:
    """The mean over the objects of the overlap with the best anchor: what the paper compares priors by."""
    overlaps = size_overlaps(np.asarray(sizes_wh, np.float64), np.asarray(anchors_wh, np.float64))
    return float(overlaps.max(axis=1).mean())


def check_sizes(sizes_wh: NDArray[np.floating], k: int) -> FloatArray:
    """The sizes of more than nothing as float64.

    Raises:
        InputError: where fewer than k of them differ.
    """
    sizes = np.asarray(sizes_wh, dtype=np.float64).reshape(-1, 2)
    sizes = sizes[np.isfinite(sizes).all(axis=1) & (sizes > 0).all(axis=1)]
    different = len(np.unique(sizes, axis=0))
    if k < 1 or different < k:
        raise InputError(
            "anchors from the data",
            expected=f"at least {max(k, 1)} objects of different sizes for {k} anchors",
            got=f"{different}",
            fix="give more training data, or leave the anchors as they are",
        )
    return sizes


def _first_centres(sizes: FloatArray, k: int, generator: np.random.Generator) -> FloatArray:
    """Sizes drawn with chances that grow with their squared distance to those drawn before."""
    centres: FloatArray = sizes[generator.integers(len(sizes))][None]
    while len(centres) < k:
        distances = (1 - size_overlaps(sizes, centres).max(axis=1)).clip(min=0) ** 2
        chosen = generator.choice(len(sizes), p=distances / distances.sum())
        centres = np.concatenate([centres, sizes[chosen][None]])
    return centres
