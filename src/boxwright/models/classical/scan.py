"""Where a cascade takes a background for the object: OpenCV looks at every place of an image at every scale."""

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


@dataclass(frozen=True)
class Scan:
    """What passed.

    Attributes:
        windows: (N, H, W) uint8 that pass, at most as many as were asked for.
        num_passed: windows that passed, also beyond those.
        num_scanned: windows that were looked at.
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
        images: (h, w) uint8 grey, none smaller than the window.
        count: of windows at which to end; of these no image gives more than a twentieth, or its share of fewer images.
        random: of the order, and of what is taken where there is more.
        most_scanned: windows after which to end, whatever was found.
    """
    storage = cv2.FileStorage(cascade_xml(cascade), cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
    classifier = cv2.CascadeClassifier()
    is_read = classifier.read(storage.getFirstTopLevelNode())
    assert is_read
    most_of_an_image = ceil(count / min(len(images), _IMAGES_AT_LEAST))
    found: list[Windows] = []
    num_found = num_passed = num_scanned = 0
    for index in random.permutation(len(images)):
        image = images[index]
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


def _num_places(image: NDArray[np.uint8], window_hw: tuple[int, int]) -> int:
    """How many windows OpenCV looks at."""
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
    steps = np.round(np.log(places_xywh[:, 2] / width) / np.log(SCALE_FACTOR)).astype(int)
    for step in np.unique(steps):
        factor = SCALE_FACTOR ** int(step)
        size = max(width, round(image.shape[1] / factor)), max(height, round(image.shape[0] / factor))
        scaled = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR_EXACT)
        for index in np.flatnonzero(steps == step):
            left = min(round(places_xywh[index, 0] / factor), size[0] - width)
            top = min(round(places_xywh[index, 1] / factor), size[1] - height)
            windows[index] = scaled[top : top + height, left : left + width]
    return windows
