"""Which anchors learn which objects, by overlap or by statistics of the overlaps.

Sources: Ren et al., Faster R-CNN, 2015, sec. 3.1.2; Liu et al., SSD, ECCV 2016, sec. 2.2; Zhang et al., ATSS, CVPR
2020, alg. 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boxwright.models.common.boxes import pairwise_iou

BACKGROUND = -1
IGNORED = -2


@torch.no_grad()
def assign_by_iou(
    anchors_xyxy: Tensor,
    boxes_xyxy: Tensor,
    *,
    foreground_iou: float,
    background_iou: float,
    keep_best_of_object: bool = True,
) -> Tensor:
    """The object of each anchor.

    Args:
        anchors_xyxy: (N, 4).
        boxes_xyxy: (M, 4) of the objects.
        foreground_iou: an anchor with at least this overlap learns the object that it overlaps most.
        background_iou: one below this is background; those between are ignored.
        keep_best_of_object: whether the anchors that overlap an object most learn it, however little they do.

    Returns:
        (N,) int64: index of the object, `BACKGROUND` or `IGNORED`.
    """
    if len(boxes_xyxy) == 0:
        return torch.full((len(anchors_xyxy),), BACKGROUND, device=anchors_xyxy.device)
    iou = pairwise_iou(boxes_xyxy, anchors_xyxy)  # (M, N)
    best_iou, assigned = iou.max(dim=0)
    result = assigned.clone()
    result[best_iou < foreground_iou] = IGNORED
    result[best_iou < background_iou] = BACKGROUND
    if keep_best_of_object:
        best_of_object = iou.max(dim=1, keepdim=True).values  # (M, 1)
        is_best = ((iou == best_of_object) & (best_of_object > 0)).any(dim=0)
        # Such an anchor learns the object that it overlaps most, which need not be the one it is the best of.
        result[is_best] = assigned[is_best]
    return result


@torch.no_grad()
def assign_one_each(anchors_xyxy: Tensor, boxes_xyxy: Tensor, *, foreground_iou: float) -> Tensor:
    """The object of each anchor as SSD has it: one anchor for each object, and all that overlap it well.

    The pair of the highest overlap is made first, then the highest of those left, so that no object takes the anchor
    that another one overlaps more.

    Args:
        anchors_xyxy: (N, 4).
        boxes_xyxy: (M, 4) of the objects.
        foreground_iou: any other anchor with at least this overlap learns the object that it overlaps most.

    Returns:
        (N,) int64: index of the object or `BACKGROUND`.
    """
    if len(boxes_xyxy) == 0:
        return torch.full((len(anchors_xyxy),), BACKGROUND, device=anchors_xyxy.device)
    iou = pairwise_iou(boxes_xyxy, anchors_xyxy)  # (M, N)
    best_iou, best_object = iou.max(dim=0)
    assigned = torch.where(best_iou >= foreground_iou, best_object, BACKGROUND)
    own_iou, own = iou.max(dim=1)  # (M,)
    reached = (own_iou > 0).nonzero().squeeze(1)
    if len(set(own[reached].tolist())) == len(reached):  # nearly always, and then in any order
        assigned[own[reached]] = reached
        return assigned
    for _ in range(len(anchors_xyxy)):
        best = iou.argmax()
        row, column = best // iou.shape[1], best % iou.shape[1]
        if iou[row, column] <= 0:
            break
        assigned[column] = row
        iou[row], iou[:, column] = -1.0, -1.0
    return assigned


@torch.no_grad()
def assign_atss(
    anchors_xyxy: Tensor, level_sizes: tuple[int, ...], boxes_xyxy: Tensor, *, candidates_per_level: int = 9
) -> Tensor:
    """The object of each anchor by adaptive training sample selection.

    For each object the anchors of every level whose centres are nearest are candidates; those that overlap it at least
    by the mean plus the standard deviation of the candidates' overlaps, and have their centre inside, learn it.

    Args:
        anchors_xyxy: (N, 4), by level.
        level_sizes: anchors of each level.
        boxes_xyxy: (M, 4) of the objects.
        candidates_per_level: k of the paper.

    Returns:
        (N,) int64: index of the object or `BACKGROUND`.
    """
    num_anchors = len(anchors_xyxy)
    if len(boxes_xyxy) == 0:
        return torch.full((num_anchors,), BACKGROUND, device=anchors_xyxy.device)
    iou = pairwise_iou(boxes_xyxy, anchors_xyxy)  # (M, N)
    centres = (anchors_xyxy[:, :2] + anchors_xyxy[:, 2:]) / 2
    box_centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    distances = torch.cdist(box_centres, centres)  # (M, N)
    is_candidate = torch.zeros_like(iou, dtype=torch.bool)
    start = 0
    for size in level_sizes:
        count = min(candidates_per_level, size)
        nearest = distances[:, start : start + size].topk(count, dim=1, largest=False).indices + start
        is_candidate.scatter_(1, nearest, True)
        start += size
    num_candidates = is_candidate.sum(dim=1)
    candidate_iou = iou * is_candidate
    mean = candidate_iou.sum(dim=1) / num_candidates
    variance = ((iou - mean[:, None]).square() * is_candidate).sum(dim=1) / (num_candidates - 1).clamp(min=1)
    threshold = (mean + variance.sqrt())[:, None]
    x, y = centres[:, 0], centres[:, 1]
    left, top, right, bottom = boxes_xyxy[:, :, None].unbind(dim=1)  # (M, 1) each
    is_inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    learns = is_candidate & is_inside & (iou >= threshold)
    best_iou, assigned = torch.where(learns, iou, -1.0).max(dim=0)
    return torch.where(best_iou >= 0, assigned, BACKGROUND)
