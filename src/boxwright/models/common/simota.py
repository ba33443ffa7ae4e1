"""SimOTA: which anchor points learn which object, decided by the predictions themselves.

Every object takes as many points as its best predictions overlap it in sum, and takes those that cost it least.

Source: Ge et al., YOLOX, 2021, sec. 2.1 "SimOTA", after Ge et al., OTA, CVPR 2021, sec. 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from boxwright.models.common.boxes import pairwise_iou
from boxwright.models.common.targets import PaddedTargets

CENTER_RADIUS = 2.5
IOU_COST_WEIGHT = 3.0
DYNAMIC_K_CANDIDATES = 10
# Points that are not both inside the box and near its centre are taken only where there is nothing better.
_OUTSIDE_COST = 1e5
_NO_CANDIDATE_COST = 1e8
_SMALLEST_IOU = 1e-8


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Which object each anchor point learns.

    Attributes:
        is_foreground: (B, N) bool.
        object_index: (B, N) int64, row of the padded targets; 0 for background.
        iou: (B, N) of the point's box with its object; 0 for background.
    """

    is_foreground: Tensor
    object_index: Tensor
    iou: Tensor


@torch.no_grad()
def assign_simota(
    boxes_xyxy: Tensor,
    class_logits: Tensor,
    objectness: Tensor,
    targets: PaddedTargets,
    points_xy: Tensor,
    strides: Tensor,
) -> Assignment:
    """Assign objects to anchor points, for the whole batch at once.

    Args:
        boxes_xyxy: (B, N, 4) decoded boxes in network pixels.
        class_logits: (B, N, C).
        objectness: (B, N) logits.
        targets: G objects an image at most, padding included.
        points_xy: (N, 2) middles of the grid cells, in network pixels.
        strides: (N,) of each point's level.

    Returns:
        An `Assignment`; all background where there is no object.
    """
    batch_size, num_points, _ = class_logits.shape
    if targets.boxes_xyxy.shape[1] == 0:
        return Assignment(
            is_foreground=torch.zeros(batch_size, num_points, dtype=torch.bool, device=boxes_xyxy.device),
            object_index=torch.zeros(batch_size, num_points, dtype=torch.int64, device=boxes_xyxy.device),
            iou=torch.zeros(batch_size, num_points, device=boxes_xyxy.device),
        )
    in_box, near_center = _where_points_lie(targets.boxes_xyxy, points_xy, strides)  # (B, G, N) each
    is_object = targets.is_object[:, :, None]  # (B, G, 1)
    # A point is a candidate of every object as soon as it lies in or near any one of them.
    is_candidate = ((in_box | near_center) & is_object).any(dim=1, keepdim=True) & is_object  # (B, G, N)
    iou = pairwise_iou(targets.boxes_xyxy, boxes_xyxy) * is_candidate  # (B, G, N)
    cost = (
        class_cost(class_logits, objectness, targets.class_ids)
        - IOU_COST_WEIGHT * (iou + _SMALLEST_IOU).log()
        + _OUTSIDE_COST * ~(in_box & near_center)
    )
    cost = torch.where(is_candidate & cost.isfinite(), cost, _NO_CANDIDATE_COST)
    return _match(cost, iou, is_candidate)


def _where_points_lie(boxes_xyxy: Tensor, points_xy: Tensor, strides: Tensor) -> tuple[Tensor, Tensor]:
    """Whether each point is inside each box, and whether it is near its centre: (B, G, N) each."""
    left, top, right, bottom = boxes_xyxy[..., None].unbind(dim=2)  # (B, G, 1) each
    x, y = points_xy.unbind(dim=1)  # (N,) each
    in_box = (x > left) & (x < right) & (y > top) & (y < bottom)
    radius = CENTER_RADIUS * strides
    near_x = ((left + right) / 2 - x).abs() < radius
    near_y = ((top + bottom) / 2 - y).abs() < radius
    return in_box, near_x & near_y


def class_cost(class_logits: Tensor, objectness: Tensor, class_ids: Tensor) -> Tensor:
    """Binary cross entropy of the scores with each object's one-hot class, summed over the classes.

    The score is sqrt(class probability * objectness). Only one term of the sum differs from that of an object of no
    class, so nothing of size B x G x N x C is made.

    Args:
        class_logits: (B, N, C).
        objectness: (B, N).
        class_ids: (B, G).

    Returns:
        (B, G, N).
    """
    # In logs, so that neither p = 0 nor p = 1 gives an infinite cost: log sqrt(p) = (log p_class + log p_object) / 2.
    log_score = (functional.logsigmoid(class_logits) + functional.logsigmoid(objectness)[..., None]) / 2  # (B, N, C)
    negative = -torch.log1p(-log_score.exp().clamp(max=1 - 1e-6))  # cost of a class that the object is not
    change = (-log_score - negative).transpose(1, 2)  # (B, C, N)
    num_points = class_logits.shape[1]
    own_class = change.gather(1, class_ids[:, :, None].expand(-1, -1, num_points))  # (B, G, N)
    return negative.sum(dim=-1)[:, None, :] + own_class


def _match(cost: Tensor, iou: Tensor, is_candidate: Tensor) -> Assignment:
    """Each object takes its k cheapest points; a point that several take goes to the one it costs least."""
    num_candidates = min(DYNAMIC_K_CANDIDATES, iou.shape[2])
    # An object's k: the sum of its best overlaps, rounded down, at least one.
    object_k = iou.topk(num_candidates, dim=2).values.sum(dim=2).int().clamp(min=1)  # (B, G)
    cheapest_cost, cheapest = cost.topk(num_candidates, dim=2, largest=False)  # (B, G, k)
    is_taken = torch.arange(num_candidates, device=cost.device) < object_k[..., None]  # (B, G, k)
    is_taken &= cheapest_cost < _NO_CANDIDATE_COST
    matched = torch.zeros_like(is_candidate).scatter_(2, cheapest, is_taken)  # (B, G, N)
    best_object = torch.where(matched, cost, torch.inf).argmin(dim=1)  # (B, N)
    is_foreground = matched.any(dim=1)
    return Assignment(
        is_foreground=is_foreground,
        object_index=torch.where(is_foreground, best_object, 0),
        iou=iou.gather(1, best_object[:, None]).squeeze(1) * is_foreground,
    )
