"""Selective search: regions that may hold an object, from a segmentation whose parts are merged step by step.

The segmentation is scikit-image's; no maintained package has the rest beside OpenCV without its contributed modules.

Source: Uijlings et al., Selective Search for Object Recognition, IJCV 2013, sec. 3 (one colour
space, all similarities).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray
from boxwright.core.errors import MissingDependencyError

COLOUR_BINS, TEXTURE_BINS = 25, 10
_SHUFFLE_SEED = 0
Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SelectiveSearchConfig:
    """How an image is taken apart.

    Attributes:
        scale: of the segmentation: larger gives larger first regions.
        sigma: of the blur before it, in pixels.
        min_region_pixels: of the first regions.
        min_side: of the boxes, in pixels.
        max_boxes: that are given.
    """

    scale: float = 50.0
    sigma: float = 0.8
    min_region_pixels: int = 20
    min_side: int = 8
    max_boxes: int = 2000


@dataclass(frozen=True)
class _Regions:
    """What similarities are computed from, a row a region; rows of merged ones follow those of the segmentation."""

    histograms: FloatArray  # (R, D), colour and texture, each summing to 1
    sizes: FloatArray  # (R,) pixels
    boxes: FloatArray  # (R, 4) xyxy


def selective_search(image: NDArray[np.uint8], config: SelectiveSearchConfig = SelectiveSearchConfig()) -> FloatArray:
    """Boxes (N, 4) float32 xyxy of regions of an image, those of late merges mostly first.

    Args:
        image: (H, W, 3) uint8 BGR.
        config: how it is taken apart.

    Raises:
        MissingDependencyError: where scikit-image is not installed.
    """
    try:
        from skimage.segmentation import felzenszwalb
    except ImportError as error:
        raise MissingDependencyError("scikit-image", extra="train", needed_for="selective search") from error
    labels: Labels = felzenszwalb(
        image, scale=config.scale, sigma=config.sigma, min_size=config.min_region_pixels, channel_axis=2
    ).astype(np.int64)
    regions = _describe(image, labels)
    boxes = _merge(regions, _neighbours(labels), float(labels.size))
    return _chosen(boxes, config)


def _describe(image: NDArray[np.uint8], labels: Labels) -> _Regions:
    count = int(labels.max()) + 1
    flat = labels.ravel()
    sizes = np.bincount(flat, minlength=count).astype(np.float32)
    rows, columns = np.indices(labels.shape)
    boxes = np.empty((count, 4), dtype=np.float32)
    for index, (values, start, ufunc) in enumerate(
        ((columns, np.inf, np.minimum), (rows, np.inf, np.minimum), (columns, 0, np.maximum), (rows, 0, np.maximum))
    ):
        extreme = np.full(count, start, dtype=np.float32)
        ufunc.at(extreme, flat, values.ravel().astype(np.float32))
        boxes[:, index] = extreme + (index >= 2)
    maps = [
        (channel / 255.0, COLOUR_BINS) for channel in np.moveaxis(cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL), 2, 0)
    ]
    colour = _histograms(maps, flat, count)
    texture = _histograms([(part, TEXTURE_BINS) for part in _derivatives(image)], flat, count)
    return _Regions(np.concatenate([colour, texture], axis=1), sizes, boxes)


def _derivatives(image: NDArray[np.uint8]) -> list[FloatArray]:
    """Brightness changes of each channel in eight directions, 0 to 1."""
    pixels = cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1.0)
    dx, dy = cv2.Sobel(pixels, cv2.CV_32F, 1, 0), cv2.Sobel(pixels, cv2.CV_32F, 0, 1)
    parts: list[FloatArray] = []
    for angle in np.arange(4) * np.pi / 4:
        along = dx * np.float32(np.cos(angle)) + dy * np.float32(np.sin(angle))
        for half in (np.maximum(along, 0), np.maximum(-along, 0)):
            greatest = max(float(half.max()), 1e-6)
            parts.extend(half[..., channel] / np.float32(greatest) for channel in range(3))
    return parts


def _histograms(maps: list[tuple[FloatArray, int]], flat: Labels, count: int) -> FloatArray:
    """Histograms (R, sum of bins) of maps with values from 0 to 1, all together summing to 1 for each region."""
    columns = []
    for values, bins in maps:
        index = np.minimum((values.ravel() * bins).astype(np.int64), bins - 1)
        columns.append(np.bincount(flat * bins + index, minlength=count * bins).reshape(count, bins))
    joined = np.concatenate(columns, axis=1).astype(np.float32)
    result: FloatArray = joined / np.maximum(joined.sum(axis=1, keepdims=True), 1)
    return result


def _neighbours(labels: Labels) -> list[set[int]]:
    """The regions that touch each region."""
    count = int(labels.max()) + 1
    touching: list[set[int]] = [set() for _ in range(count)]
    for first, second in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        differs = first != second
        for pair in np.unique(first[differs] * count + second[differs]).tolist():
            one, other = divmod(pair, count)
            touching[one].add(other)
            touching[other].add(one)
    return touching


def _merge(regions: _Regions, touching: list[set[int]], image_pixels: float) -> FloatArray:
    """Boxes (R, 4) of the first regions and of all that come from merging the two most alike again and again."""
    num_first = len(regions.sizes)
    histograms, sizes, boxes = (_with_room(rows) for rows in (regions.histograms, regions.sizes, regions.boxes))

    def similarities(one: int, others: list[int]) -> list[float]:
        alike = np.minimum(histograms[others], histograms[one]).sum(axis=1)
        upper = np.minimum(boxes[others, :2], boxes[one, :2])
        sides = np.maximum(boxes[others, 2:], boxes[one, 2:]) - upper
        both = sizes[others] + sizes[one]
        hole = sides[:, 0] * sides[:, 1] - both
        return (alike + 2.0 - (both + hole) / image_pixels).tolist()  # type: ignore[no-any-return]

    queue: list[tuple[float, int, int]] = []
    for one, near in enumerate(touching):
        later = [other for other in near if other > one]
        queue.extend((-value, one, other) for value, other in zip(similarities(one, later), later, strict=True))
    heapq.heapify(queue)
    alive, merged = set(range(num_first)), num_first
    while queue:
        _, one, other = heapq.heappop(queue)
        if one not in alive or other not in alive:
            continue
        sizes[merged] = sizes[one] + sizes[other]
        histograms[merged] = (histograms[one] * sizes[one] + histograms[other] * sizes[other]) / sizes[merged]
        boxes[merged, :2] = np.minimum(boxes[one, :2], boxes[other, :2])
        boxes[merged, 2:] = np.maximum(boxes[one, 2:], boxes[other, 2:])
        alive -= {one, other}
        near = (touching[one] | touching[other]) & alive
        touching.append(near)
        for region in near:
            touching[region].add(merged)
        beside = list(near)
        for value, region in zip(similarities(merged, beside), beside, strict=True):
            heapq.heappush(queue, (-value, region, merged))
        alive.add(merged)
        merged += 1
    return boxes[:merged]


def _with_room(rows: FloatArray) -> FloatArray:
    """The rows, and as many less one after them: so many merges there are at most."""
    return np.concatenate([rows, np.zeros_like(rows[:-1])])


def _chosen(boxes: FloatArray, config: SelectiveSearchConfig) -> FloatArray:
    """Different boxes that are large enough; late merges first, shuffled so that not only large ones are."""
    large = boxes[((boxes[:, 2:] - boxes[:, :2]) >= config.min_side).all(axis=1)][::-1]
    rank = np.arange(1, len(large) + 1) * np.random.default_rng(_SHUFFLE_SEED).random(len(large))
    ordered = large[np.argsort(rank, kind="stable")]
    _, first = np.unique(ordered, axis=0, return_index=True)
    return np.ascontiguousarray(ordered[np.sort(first)][: config.max_boxes], dtype=np.float32)
