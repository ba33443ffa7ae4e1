"""Where a cascade takes a background for the object, by OpenCV's own scan of images at every scale.

OpenCV skips the place beside one that the first stage rejects, so it looks at half of the places at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.models.classical.cascade import Cascade, cascade_xml
from boxwright.models.classical.haar_features import Windows

SCALE_FACTOR = 1.1
# OpenCV looks at every other place up to this scale, beyond it at every place.
_COARSE_UP_TO = 2.0
# So that a few images do not give all windows.
_IMAGES_AT_LEAST = 20
# A larger image is looked at in part: where a cascade lets much pass, a pixel has a window and more to remember.
_MOST_PIXELS = 1_000_000


@dataclass(frozen=True)
class Scan:
    """What passed.

    Attributes:
        windows: (N, H, W) uint8 that pass, at most as many as were asked for.
        num_passed: windows that passed, also beyond those.
        num_scanned: places at which OpenCV may look. It skips the neighbour of one that the first stage rejects, so
            `num_passed / num_scanned` is a lower bound of the share of all windows that pass: it is the share of the
            places at which OpenCV would report one.
    """

    windows: Windows
    num_passed: int
    num_scanned: int


def scan(
    cascade: Cascade,
    images: Sequence[NDArray[np.uint8]],
    count: int,
    random: np.random.Generator,
    *,
    most_scanned: int,
) -> Scan:
    """Windows that pass a cascade, out of images in random order.

    Args:
        cascade: of one stage at least.
        images: (h, w) uint8 grey, none smaller than the window; of one beyond a megapixel a random part of about that
            is looked at.
        count: of windows at which to end; of these no image gives more than a twentieth, or its share of fewer images.
        random: of the order, the parts, and of what is taken where there is more.
        most_scanned: places after which to end, whatever was found.
    """
    storage = cv2.FileStorage(cascade_xml(cascade), cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
    classifier = cv2.CascadeClassifier()
    is_read = classifier.read(storage.getFirstTopLevelNode())
    assert is_read
    most_of_an_image = ceil(count / min(len(images), _IMAGES_AT_LEAST))
    found: list[Windows] = []
    num_found = num_passed = num_scanned = 0
    for index in random.permutation(len(images)):
        image = _part(images[index], cascade.window_hw, random)
        places = np.asarray(classifier.detectMultiScale(image, SCALE_FACTOR, 0), dtype=np.int64).reshape(-1, 4)
        num_passed += len(places)
        num_scanned += _num_places(image, cascade.window_hw)
        places = places[np.lexsort(places.T)]  # OpenCV's threads answer in any order
        if len(places) > most_of_an_image:
            places = places[np.sort(random.choice(len(places), most_of_an_image, replace=False))]
        if len(places):
            windows = _cut(image, places, cascade.window_hw)
            found.append(windows[cascade.passes(windows)])
            num_found += len(found[-1])
        if num_found >= count or num_scanned >= most_scanned:
            break
    empty = np.zeros((0, *cascade.window_hw), dtype=np.uint8)
    return Scan(np.concatenate([empty, *found])[:count], num_passed, num_scanned)


def _part(image: NDArray[np.uint8], window_hw: tuple[int, int], random: np.random.Generator) -> NDArray[np.uint8]:
    """An image of at most about a megapixel as it is, of a larger one a part of its shape anywhere in it."""
    size_hw = image.shape[:2]
    shrink = (_MOST_PIXELS / (size_hw[0] * size_hw[1])) ** 0.5
    if shrink >= 1:
        return image
    height, width = (max(round(size * shrink), side) for size, side in zip(size_hw, window_hw, strict=True))
    top, left = int(random.integers(size_hw[0] - height + 1)), int(random.integers(size_hw[1] - width + 1))
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _num_places(image: NDArray[np.uint8], window_hw: tuple[int, int]) -> int:
    """At how many places OpenCV may look."""
    total, factor = 0, 1.0
    while True:
        sides = [round(side / factor) - window for side, window in zip(image.shape[:2], window_hw, strict=True)]
        if min(sides) < 0:
            return total
        step = 1 if factor > _COARSE_UP_TO else 2
        total += int(np.prod([side // step + 1 for side in sides]))
        factor *= SCALE_FACTOR


def _cut(image: NDArray[np.uint8], places_xywh: NDArray[np.int64], window_hw: tuple[int, int]) -> Windows:
    """The windows (N, H, W) at these places, out of the image at the scale at which OpenCV saw them."""
    height, width = window_hw
    windows = np.empty((len(places_xywh), height, width), dtype=np.uint8)
    # OpenCV rounds both sides to whole pixels, which tells least about the scale on the longer one.
    longer, side = (2, width) if width >= height else (3, height)
    steps = np.round(np.log(places_xywh[:, longer] / side) / np.log(SCALE_FACTOR)).astype(int)
    for step in np.unique(steps):
        factor = SCALE_FACTOR ** int(step)
        size = max(width, round(image.shape[1] / factor)), max(height, round(image.shape[0] / factor))
        scaled = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR_EXACT)
        for index in np.flatnonzero(steps == step):
            left = min(round(places_xywh[index, 0] / factor), size[0] - width)
            top = min(round(places_xywh[index, 1] / factor), size[1] - height)
            windows[index] = scaled[top : top + height, left : left + width]
    return windows
