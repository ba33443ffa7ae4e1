"""What a class branch is to learn of an object, with label smoothing where asked for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sigmoid_class_targets(class_ids: Tensor, num_classes: int, *, smoothing: float = 0.0) -> Tensor:
    """Targets of independent sigmoids: 1 for the object's class and 0 for the others, both drawn towards 1/2.

    Args:
        class_ids: (...,) int64.
        num_classes: without the background.
        smoothing: epsilon; the targets become 1 - epsilon / 2 and epsilon / 2.

    Returns:
        (..., C) float32.

    Source: Szegedy et al., Inception v3, CVPR 2016, sec. 7, for the two outcomes that a sigmoid chooses between.
    """
    targets = functional.one_hot(class_ids, num_classes).float()
    return targets if smoothing == 0 else targets * (1 - smoothing) + smoothing / 2


def softmax_class_targets(class_ids: Tensor, num_classes: int, *, smoothing: float = 0.0) -> Tensor:
    """Targets of a softmax: 1 for the object's class and 0 for the others, both drawn towards 1 / C.

    Args:
        class_ids: (...,) int64.
        num_classes: that the softmax is over, the background included where there is one.
        smoothing: epsilon; the targets become 1 - epsilon + epsilon / C and epsilon / C.

    Returns:
        (..., C) float32; sums to 1.

    Source: Szegedy et al., Inception v3, CVPR 2016, sec. 7.
    """
    targets = functional.one_hot(class_ids, num_classes).float()
    return targets if smoothing == 0 else targets * (1 - smoothing) + smoothing / num_classes


def smoothed_cross_entropy(logits: Tensor, class_ids: Tensor, is_object: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross entropy of a softmax, with the targets of objects as `softmax_class_targets` has them.

    Args:
        logits: (K, C), the background among the classes.
        class_ids: (K,) int64.
        is_object: (K,) bool; the background is not smoothed.
        smoothing: epsilon.

    Returns:
        (K,).
    """
    losses = functional.cross_entropy(logits, class_ids, reduction="none")
    if smoothing == 0:
        return losses
    uniform = -logits.log_softmax(dim=1).mean(dim=1)
    return torch.where(is_object, (1 - smoothing) * losses + smoothing * uniform, losses)
