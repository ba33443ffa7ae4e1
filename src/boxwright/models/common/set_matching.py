"""Which prediction answers for which object: the assignment of least total cost, one to one.

Source: Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, sec. 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from boxwright.models.common.boxes import OverlapKind, cxcywh_to_xyxy, paired_overlap

# An overflowed prediction costs this much and loses every comparison, instead of stopping the run.
_UNUSABLE = 1e6


@dataclass(frozen=True, kw_only=True)
class MatchingCosts:
    """Weights of the parts of the cost of a pair."""

    class_weight: float
    l1_weight: float = 5.0
    giou_weight: float = 2.0


@torch.no_grad()
def match_sets(
    class_costs: Tensor, boxes_cxcywh: Tensor, target_boxes_cxcywh: Tensor, costs: MatchingCosts
) -> tuple[Tensor, Tensor]:
    """Match the predictions of one image with its objects.

    Args:
        class_costs: (Q, M) of each query for the class of each object, lower is better.
        boxes_cxcywh: (Q, 4) relative to the input.
        target_boxes_cxcywh: (M, 4) likewise.
        costs: the weights.

    Returns:
        Indices of queries and of objects, each (min(Q, M),), the objects ascending; where there are more objects than
        queries, those that cost the most go without.
    """
    l1 = torch.cdist(boxes_cxcywh, target_boxes_cxcywh, p=1)
    found, wanted = cxcywh_to_xyxy(boxes_cxcywh)[:, None], cxcywh_to_xyxy(target_boxes_cxcywh)[None]
    giou = paired_overlap(found, wanted, kind="giou")  # (Q, M)
    total = costs.class_weight * class_costs + costs.l1_weight * l1 - costs.giou_weight * giou
    total = total.nan_to_num(nan=_UNUSABLE, posinf=_UNUSABLE, neginf=_UNUSABLE)
    rows, columns = linear_sum_assignment(total.cpu().double().numpy())
    queries, objects = torch.as_tensor(rows), torch.as_tensor(columns)
    order = objects.argsort()
    return queries[order].to(boxes_cxcywh.device), objects[order].to(boxes_cxcywh.device)


def matched_box_losses(
    boxes_cxcywh: Tensor, target_boxes_cxcywh: Tensor, *, kind: OverlapKind = "giou"
) -> tuple[Tensor, Tensor]:
    """The L1 and the overlap's loss of matched pairs, each summed over the pairs and divided by their number.

    Args:
        boxes_cxcywh: (M, 4) predicted, relative to the input.
        target_boxes_cxcywh: (M, 4) of the objects; M may be 0.
        kind: of overlap.

    Returns:
        Two scalars.
    """
    count = max(len(boxes_cxcywh), 1)
    overlaps = paired_overlap(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(target_boxes_cxcywh), kind=kind)
    return (boxes_cxcywh - target_boxes_cxcywh).abs().sum() / count, (1 - overlaps).sum() / count
