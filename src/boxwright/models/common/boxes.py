"""Boxes and their overlaps in torch, differentiable; the numpy reference is `boxwright.core.boxes`."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

OverlapKind = Literal["iou", "giou", "diou", "ciou"]
# Below this, a union, an enclosing box or a diagonal is taken as this, so that empty boxes give 0 and no NaN.
_SMALLEST_AREA = 1e-7


def box_areas(boxes_xyxy: Tensor) -> Tensor:
    """Areas (...,) of boxes (..., 4); a box of negative width or height has area 0."""
    extent = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0)
    return extent[..., 0] * extent[..., 1]


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Centre, width and height (..., 4) to corners (..., 4)."""
    centres, half_sizes = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    return torch.cat([centres - half_sizes, centres + half_sizes], dim=-1)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Corners (..., 4) to centre, width and height (..., 4)."""
    top_left, bottom_right = boxes_xyxy[..., :2], boxes_xyxy[..., 2:]
    return torch.cat([(top_left + bottom_right) / 2, bottom_right - top_left], dim=-1)


def pairwise_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """IoU of every box of one set with every box of another.

    Args:
        boxes_a: (..., A, 4) xyxy.
        boxes_b: (..., B, 4) xyxy.

    Returns:
        (..., A, B).
    """
    left_a, top_a, right_a, bottom_a = boxes_a[..., :, None, :].unbind(dim=-1)  # (..., A, 1) each
    left_b, top_b, right_b, bottom_b = boxes_b[..., None, :, :].unbind(dim=-1)  # (..., 1, B) each
    width = (torch.minimum(right_a, right_b) - torch.maximum(left_a, left_b)).clamp(min=0)
    height = (torch.minimum(bottom_a, bottom_b) - torch.maximum(top_a, top_b)).clamp(min=0)
    intersection = width * height  # (..., A, B)
    union = box_areas(boxes_a)[..., :, None] + box_areas(boxes_b)[..., None, :] - intersection
    return intersection / union.clamp(min=_SMALLEST_AREA)


def paired_overlap(boxes_a: Tensor, boxes_b: Tensor, *, kind: OverlapKind = "iou") -> Tensor:
    """Overlap of each box with the box in the same place of the other set.

    Args:
        boxes_a: (..., 4) xyxy.
        boxes_b: (..., 4) xyxy.
        kind: "iou"; "giou" (less the share of the enclosing box that neither covers); "diou" (less the squared
            distance of the centres over the enclosing box's squared diagonal); "ciou" (diou less a term for the
            difference of the aspect ratios).

    Returns:
        (...,).

    Source: Rezatofighi et al., GIoU, CVPR 2019, alg. 1; Zheng et al., Distance-IoU Loss, AAAI 2020, eq. 7 and 9-11.
    """
    top_left = torch.maximum(boxes_a[..., :2], boxes_b[..., :2])
    bottom_right = torch.minimum(boxes_a[..., 2:], boxes_b[..., 2:])
    extent = (bottom_right - top_left).clamp(min=0)
    intersection = extent[..., 0] * extent[..., 1]
    union = (box_areas(boxes_a) + box_areas(boxes_b) - intersection).clamp(min=_SMALLEST_AREA)
    iou = intersection / union
    if kind == "iou":
        return iou
    enclosing = torch.maximum(boxes_a[..., 2:], boxes_b[..., 2:]) - torch.minimum(boxes_a[..., :2], boxes_b[..., :2])
    if kind == "giou":
        hull = (enclosing[..., 0] * enclosing[..., 1]).clamp(min=_SMALLEST_AREA)
        return iou - (hull - union) / hull
    offset = (boxes_a[..., :2] + boxes_a[..., 2:] - boxes_b[..., :2] - boxes_b[..., 2:]) / 2
    diagonal_squared = enclosing.square().sum(-1).clamp(min=_SMALLEST_AREA)
    diou = iou - offset.square().sum(-1) / diagonal_squared
    if kind == "diou":
        return diou
    aspect_term = (_aspect_angle(boxes_a) - _aspect_angle(boxes_b)).square() * (4 / math.pi**2)
    with torch.no_grad():  # the paper's alpha is a weight, not a function to descend
        weight = aspect_term / (1 - iou + aspect_term).clamp(min=_SMALLEST_AREA)
    return diou - weight * aspect_term


def _aspect_angle(boxes_xyxy: Tensor) -> Tensor:
    """arctan(width / height)."""
    sizes = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return torch.atan2(sizes[..., 0], sizes[..., 1].clamp(min=_SMALLEST_AREA))
