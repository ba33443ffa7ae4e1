"""Parts of annotated images that hold no object: backgrounds for detectors that learn from windows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# An image is looked at in cells, at most so many a side, so that crowded ones cost no more than others.
_MOST_CELLS = 64


def largest_free_part(size_hw: tuple[int, int], boxes_xyxy: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """The largest upright rectangle that touches no box, to the accuracy of a 64th of the longer side.

    Args:
        size_hw: of the image.
        boxes_xyxy: (N, 4) in it.

    Returns:
        Left, top, right and bottom in whole pixels; empty where the boxes leave nothing.
    """
    height, width = size_hw
    cell = max(1, math.ceil(max(size_hw) / _MOST_CELLS))
    rows, columns = height // cell, width // cell
    is_taken = np.zeros((rows, columns), dtype=np.bool_)
    for left, top, right, bottom in boxes_xyxy:
        first_row, last_row = int(top // cell), math.ceil(bottom / cell)
        is_taken[first_row:last_row, int(left // cell) : math.ceil(right / cell)] = True
    best, best_area = (0, 0, 0, 0), 0
    free_above = np.zeros(columns, dtype=np.int64)
    for row in range(rows):
        free_above = np.where(is_taken[row], 0, free_above + 1)
        for first, last, tall in _maximal_spans(free_above.tolist()):
            if tall * (last - first) > best_area:
                best_area = tall * (last - first)
                best = first * cell, (row + 1 - tall) * cell, last * cell, (row + 1) * cell
    return best


def _maximal_spans(heights: list[int]) -> list[tuple[int, int, int]]:
    """First column, last column (excluded) and height of every rectangle under a skyline that cannot grow."""
    spans = []
    open_spans: list[tuple[int, int]] = []  # where each began, and its height, ascending
    for column, height in enumerate([*heights, 0]):
        start = column
        while open_spans and open_spans[-1][1] >= height:
            start, tall = open_spans.pop()
            spans.append((start, column, tall))
        open_spans.append((start, height))
    return spans
