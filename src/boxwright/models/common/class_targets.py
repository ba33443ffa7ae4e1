"""What a class branch is to learn of an object, with label smoothing where asked for."""

from __future__ import annotations

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
