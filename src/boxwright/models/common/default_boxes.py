"""The default boxes of SSD: squares and their stretched kin about the middle of every cell of every level.

Source: Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, sec. 2.2, "Choosing scales and aspect ratios".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from boxwright.core.decode_spec import AnchorLevel


def linear_scales(smallest: float, largest: float, num_levels: int) -> tuple[float, ...]:
    """The scale of each level, equally spaced, and 1 for what follows the last one: (num_levels + 1,) (eq. 4)."""
    step = (largest - smallest) / (num_levels - 1)
    return (*(smallest + step * level for level in range(num_levels)), 1.0)


def num_boxes_per_cell(aspect_ratios: Sequence[float]) -> int:
    """Two squares, and each ratio lying and standing."""
    return 2 + 2 * len(aspect_ratios)


def default_box_levels(
    size_hw: tuple[int, int],
    *,
    grids_hw: Sequence[tuple[int, int]],
    steps_hw: Sequence[tuple[float, float]],
    scales: Sequence[float],
    aspect_ratios: Sequence[Sequence[float]],
) -> tuple[AnchorLevel, ...]:
    """The default boxes of an input.

    Args:
        size_hw: of the input, in pixels; a box of scale 1 is as large.
        grids_hw: rows and columns of each level.
        steps_hw: pixels from cell to cell of each level.
        scales: of each level, and one more.
        aspect_ratios: width over height, besides 1, of each level; the inverse of each is added.

    Returns:
        A level each: a square of its scale, one of the geometric mean with the next scale, then each ratio and its
        inverse. No side is longer than the image's.
    """
    height, width = size_hw
    levels = []
    for index, (grid_hw, step_hw) in enumerate(zip(grids_hw, steps_hw, strict=True)):
        scale, between = scales[index], math.sqrt(scales[index] * scales[index + 1])
        sizes_wh = [(scale, scale), (between, between)]
        for ratio in aspect_ratios[index]:
            root = math.sqrt(ratio)
            sizes_wh += [(scale * root, scale / root), (scale / root, scale * root)]
        halves = [(min(w, 1.0) * width / 2, min(h, 1.0) * height / 2) for w, h in sizes_wh]
        levels.append(
            AnchorLevel(
                grid_hw=grid_hw,
                stride_hw=step_hw,
                cell_boxes_xyxy=tuple((-half_w, -half_h, half_w, half_h) for half_w, half_h in halves),
                offset=0.5,
            )
        )
    return tuple(levels)
