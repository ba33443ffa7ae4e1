"""The box losses that come from overlaps: one less the IoU, GIoU, DIoU or CIoU of a prediction with its object."""

from __future__ import annotations

from torch import Tensor

from boxwright.models.common.boxes import OverlapKind, paired_overlap


def overlap_loss(boxes_xyxy: Tensor, target_boxes_xyxy: Tensor, *, kind: OverlapKind) -> Tensor:
    """Loss of each predicted box against its object; 0 where they are the same.

    Args:
        boxes_xyxy: (..., 4) predicted.
        target_boxes_xyxy: (..., 4) of the objects in the same places.
        kind: of overlap; the gradient of "iou" is 0 where the two do not touch, that of the others is not.

    Returns:
        (...,).

    Source: Rezatofighi et al., GIoU, CVPR 2019, alg. 1; Zheng et al., Distance-IoU Loss, AAAI 2020, eq. 7 and 10.
    """
    return 1 - paired_overlap(boxes_xyxy, target_boxes_xyxy, kind=kind)
