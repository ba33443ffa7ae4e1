"""SSD's loss: softmax over the classes and the background, hard negatives alone, and smooth L1 of the deltas.

Source: Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016, sec. 2.2, "Training objective" and "Hard negative
mining".
"""

from __future__ import annotations

import torch
from torch import Tensor

NEGATIVES_PER_POSITIVE = 3
# The paper learns nothing from an image without objects, so that what is found there wrongly would stay for ever.
# Such an image gives as many negatives as if one anchor had an object.
FEWEST_NEGATIVES = 3


@torch.no_grad()
def hardest_negatives(
    background_losses: Tensor,
    is_positive: Tensor,
    *,
    per_positive: int = NEGATIVES_PER_POSITIVE,
    at_least: int = FEWEST_NEGATIVES,
) -> Tensor:
    """The background anchors of each image that look most like an object.

    Args:
        background_losses: (B, N) loss of each anchor as background.
        is_positive: (B, N) bool, anchors that have an object.
        per_positive: so many times the positives of the image are taken.
        at_least: are taken of an image, however few positives it has.

    Returns:
        (B, N) bool.
    """
    losses = background_losses.masked_fill(is_positive, -torch.inf)
    order = losses.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    count = (per_positive * is_positive.sum(dim=1, keepdim=True)).clamp(min=at_least)  # (B, 1)
    return (rank < count) & ~is_positive


def multibox_class_loss(class_logits: Tensor, class_targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Cross entropy of the positives and of the hardest negatives, summed over the batch.

    Args:
        class_logits: (B, N, C + 1), the background first.
        class_targets: (B, N) int64, 0 for the background.
        label_smoothing: epsilon of the positives' targets, as `class_targets.softmax_class_targets` has them.

    Returns:
        A scalar.
    """
    log_probabilities = class_logits.log_softmax(dim=-1)
    losses = -log_probabilities.gather(2, class_targets[..., None]).squeeze(2)  # (B, N)
    is_positive = class_targets > 0
    is_negative = hardest_negatives(losses.detach(), is_positive)
    positive_losses = losses[is_positive]
    if label_smoothing > 0:
        uniform = -log_probabilities[is_positive].mean(dim=-1)
        positive_losses = (1 - label_smoothing) * positive_losses + label_smoothing * uniform
    return positive_losses.sum() + losses[is_negative].sum()
