"""Box formats and overlaps in numpy, float32 throughout.

Boxes are continuous rectangles: width is x2 - x1, without a "+ 1". All functions take and return arrays whose last
axis has length 4; leading axes are free.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
_Float = TypeVar("_Float", np.float32, np.float64)


def xyxy_to_cxcywh(boxes_xyxy: FloatArray) -> FloatArray:
    """Corners (..., 4) to centre, width and height (..., 4)."""
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return np.concatenate([(top_left + bottom_right) / 2, bottom_right - top_left], axis=-1)


def cxcywh_to_xyxy(boxes_cxcywh: FloatArray) -> FloatArray:
    """Centre, width and height (..., 4) to corners (..., 4)."""
    centre, half_size = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return np.concatenate([centre - half_size, centre + half_size], axis=-1)


def xyxy_to_xywh(boxes_xyxy: FloatArray) -> FloatArray:
    """Corners (..., 4) to top-left corner, width and height (..., 4), the format of COCO files."""
    top_left = boxes_xyxy[..., :2]
    return np.concatenate([top_left, boxes_xyxy[..., 2:] - top_left], axis=-1)


def xywh_to_xyxy(boxes_xywh: FloatArray) -> FloatArray:
    """Top-left corner, width and height (..., 4) to corners (..., 4)."""
    top_left = boxes_xywh[..., :2]
    return np.concatenate([top_left, top_left + boxes_xywh[..., 2:]], axis=-1)


def clip_boxes(boxes_xyxy: FloatArray, size_hw: tuple[float, float] | FloatArray) -> FloatArray:
    """Boxes (..., 4) with every corner moved into an image of `size_hw` pixels."""
    height, width = np.float32(size_hw[0]), np.float32(size_hw[1])
    upper = np.array([width, height, width, height], dtype=np.float32)
    clipped: FloatArray = np.minimum(np.maximum(boxes_xyxy, np.float32(0)), upper)
    return clipped


def box_areas(boxes_xyxy: NDArray[_Float]) -> NDArray[_Float]:
    """Areas (...,) in square pixels, as precise as the boxes; a box of negative width or height has area 0."""
    extent = np.maximum(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2], np.float32(0))
    areas: NDArray[_Float] = extent[..., 0] * extent[..., 1]
    return areas


def pairwise_overlaps(boxes_a: FloatArray, boxes_b: FloatArray, *, kind: str = "iou") -> FloatArray:
    """Overlap of every box of one set with every box of another.

    A pair in which either box has no area overlaps by 0. Where areas overflow float32 the result is NaN, which
    compares false with every threshold, as IEEE 754 says; all implementations of DecodeNMS share this.

    Args:
        boxes_a: (A, 4) xyxy float32.
        boxes_b: (B, 4) xyxy float32.
        kind: "iou", or "diou" (IoU less the squared distance of the centres over the squared diagonal of the
            smallest enclosing box).

    Returns:
        (A, B) float32.

    Source: Zheng et al., Distance-IoU Loss, AAAI 2020, eq. 7.
    """
    with np.errstate(all="ignore"):
        top_left = np.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])  # (A, B, 2)
        bottom_right = np.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
        extent = np.maximum(bottom_right - top_left, np.float32(0))
        intersection = extent[..., 0] * extent[..., 1]  # (A, B)
        area_a, area_b = box_areas(boxes_a), box_areas(boxes_b)
        union = area_a[:, None] + area_b[None, :] - intersection
        overlap = intersection / union
        if kind == "diou":
            overlap = overlap - _centre_distance_penalty(boxes_a, boxes_b)
        elif kind != "iou":
            raise ValueError(f"overlap kind: expected 'iou' or 'diou', got {kind!r}; pass one of the two")
    has_area = (area_a > 0)[:, None] & (area_b > 0)[None, :]
    result: FloatArray = np.where(has_area, overlap, np.float32(0)).astype(np.float32)
    return result


def _centre_distance_penalty(boxes_a: FloatArray, boxes_b: FloatArray) -> FloatArray:
    """Squared distance of centres over squared diagonal of the enclosing box, (A, B)."""
    centre_a = (boxes_a[:, None, :2] + boxes_a[:, None, 2:]) * np.float32(0.5)
    centre_b = (boxes_b[None, :, :2] + boxes_b[None, :, 2:]) * np.float32(0.5)
    offset = centre_a - centre_b
    diagonal = np.maximum(boxes_a[:, None, 2:], boxes_b[None, :, 2:]) - np.minimum(
        boxes_a[:, None, :2], boxes_b[None, :, :2]
    )
    distance_squared = offset[..., 0] ** 2 + offset[..., 1] ** 2
    diagonal_squared = diagonal[..., 0] ** 2 + diagonal[..., 1] ** 2
    penalty: FloatArray = distance_squared / diagonal_squared
    return penalty
