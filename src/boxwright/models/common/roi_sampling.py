"""Which anchors and proposals a two-stage detector learns from, and what each is to become.

Sources: Girshick, Fast R-CNN, ICCV 2015, sec. 2.3; Ren et al., Faster R-CNN, 2015, sec. 3.1.2 and 3.1.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from boxwright.models.common.boxes import pairwise_iou

BACKGROUND_LABEL = 0


@dataclass(frozen=True, kw_only=True)
class SampledRegions:
    """Regions of one image to learn from.

    Attributes:
        boxes_xyxy: (S, 4).
        labels: (S,) int64: 0 for the background, else the class plus one.
        wanted_xyxy: (S, 4) of the object of each; zeros for the background.
    """

    boxes_xyxy: Tensor
    labels: Tensor
    wanted_xyxy: Tensor


@torch.no_grad()
def choose_samples(
    is_positive: Tensor,
    is_negative: Tensor,
    *,
    count: int,
    positive_fraction: float,
    is_hard: Tensor | None = None,
) -> Tensor:
    """Indices of randomly chosen positives, and of negatives that fill up to `count`.

    Args:
        is_positive: (N,) bool.
        is_negative: (N,) bool.
        count: at most so many in all.
        positive_fraction: at most this part of them is positive.
        is_hard: (N,) bool, negatives that are taken before the others; all alike where None.
    """
    positives = _shuffled(is_positive)[: int(count * positive_fraction)]
    if is_hard is None:
        negatives = _shuffled(is_negative)
    else:
        negatives = torch.cat([_shuffled(is_negative & is_hard), _shuffled(is_negative & ~is_hard)])
    return torch.cat([positives, negatives[: count - len(positives)]])


def _shuffled(mask: Tensor) -> Tensor:
    indices = mask.nonzero()[:, 0]
    return indices[torch.randperm(len(indices), device=indices.device)]


@torch.no_grad()
def sample_regions(
    proposals_xyxy: Tensor,
    boxes_xyxy: Tensor,
    class_ids: Tensor,
    *,
    foreground_iou: float,
    hard_background_iou: float,
    count: int,
    positive_fraction: float,
) -> SampledRegions:
    """Choose from the proposals of one image and its objects themselves.

    A region that overlaps an object by at least `foreground_iou` learns it, all others are background. Those that
    overlap one by at least `hard_background_iou` are taken first; the papers take no others, which leaves nothing to
    learn from in an image without objects.

    Args:
        proposals_xyxy: (N, 4).
        boxes_xyxy: (M, 4) of the objects.
        class_ids: (M,) of the objects.
        foreground_iou: see above.
        hard_background_iou: see above.
        count: at most so many regions.
        positive_fraction: at most this part of them is foreground.
    """
    regions = torch.cat([proposals_xyxy, boxes_xyxy])
    if len(boxes_xyxy) == 0:
        best_iou, assigned = regions.new_zeros(len(regions)), torch.zeros(0, dtype=torch.int64, device=regions.device)
    else:
        best_iou, assigned = pairwise_iou(boxes_xyxy, regions).max(dim=0)
    is_positive = best_iou >= foreground_iou
    chosen = choose_samples(
        is_positive,
        ~is_positive,
        count=count,
        positive_fraction=positive_fraction,
        is_hard=best_iou >= hard_background_iou,
    )
    labels = torch.full((len(chosen),), BACKGROUND_LABEL, dtype=torch.int64, device=regions.device)
    wanted = regions.new_zeros(len(chosen), 4)
    positive = is_positive[chosen]
    objects = assigned[chosen[positive]] if len(boxes_xyxy) else assigned
    labels[positive] = class_ids[objects] + 1
    wanted[positive] = boxes_xyxy[objects]
    return SampledRegions(boxes_xyxy=regions[chosen], labels=labels, wanted_xyxy=wanted)
