"""What an object looks like in the windows of a scan, none of which lies just on it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray
from boxwright.models.classical.hog import CELL_PIXELS

# From boxes (N, 4) and the window's height and width, the boxes (M, 4) that are cut out.
Variations = Callable[[FloatArray, tuple[int, int]], FloatArray]

# A cascade's objects are varied, at most so often each, until there are about so many windows.
_ENOUGH_FOR_CASCADE, _MOST_VARIATIONS = 600, 5
# A cascade's scan goes on by a pixel or two of its window, and by a tenth in scale: half of that, either way.
_SCAN_SHIFT, _SCAN_SCALE = 0.04, 0.05
# Of more objects than that HOG sees each in five places, of fewer in ten.
_ENOUGH_FOR_HOG = 1000


def scan_variations(num_boxes: int, seed: int) -> Variations:
    """Each box, and moved and scaled at random by what a cascade passes over, the more often the fewer there are."""
    copies = min(_MOST_VARIATIONS, math.ceil(_ENOUGH_FOR_CASCADE / max(num_boxes, 1)))
    random = np.random.default_rng(seed)

    def vary(boxes_xyxy: FloatArray, window_hw: tuple[int, int]) -> FloatArray:
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]  # (N, 2) x, y
        centres = (boxes_xyxy[:, 2:] + boxes_xyxy[:, :2]) / 2
        varied = [boxes_xyxy]
        for _ in range(copies - 1):
            scales = _scales(len(boxes_xyxy), random)
            moved = centres + random.uniform(-_SCAN_SHIFT, _SCAN_SHIFT, sides.shape) * sides
            varied.append(np.concatenate([moved - sides * scales / 2, moved + sides * scales / 2], axis=1))
        result: FloatArray = np.concatenate(varied).astype(np.float32)
        return result

    return vary


def cell_variations(num_boxes: int, seed: int) -> Variations:
    """Each box, and moved by half a cell to either side, up and down, since HOG looks at a window every cell.

    All of these once more where there are few, scaled at random.
    """
    random = np.random.default_rng(seed)

    def vary(boxes_xyxy: FloatArray, window_hw: tuple[int, int]) -> FloatArray:
        sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]  # (N, 2) x, y
        half_cell = sides * (CELL_PIXELS / 2) / np.array(window_hw[::-1])
        moves = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1]], dtype=np.float32)
        offsets = np.tile(moves[:, None] * half_cell[None], 2)  # (5, N, 4)
        moved: FloatArray = (boxes_xyxy[None] + offsets).reshape(-1, 4).astype(np.float32)
        return moved if num_boxes > _ENOUGH_FOR_HOG else np.concatenate([moved, _scaled(moved, random)])

    return vary


def _scaled(boxes_xyxy: FloatArray, random: np.random.Generator) -> FloatArray:
    """Boxes (N, 4) of the same centres, a little larger or smaller."""
    scales = _scales(len(boxes_xyxy), random)
    centres = (boxes_xyxy[:, 2:] + boxes_xyxy[:, :2]) / 2
    halves = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * scales / 2
    result: FloatArray = np.concatenate([centres - halves, centres + halves], axis=1).astype(np.float32)
    return result


def _scales(count: int, random: np.random.Generator) -> NDArray[np.float64]:
    """Factors (N, 1) for the sides of boxes."""
    return np.exp(random.uniform(-_SCAN_SCALE, _SCAN_SCALE, (count, 1)))
