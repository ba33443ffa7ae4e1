"""The objects that a detector is to find in a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boxwright.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PaddedTargets:
    """The same objects in tensors of one size, G being the most that any image of the batch has.

    Attributes:
        boxes_xyxy: (B, G, 4) network pixels, 0 in the padding.
        class_ids: (B, G) int64, 0 in the padding.
        is_object: (B, G) bool, False in the padding.
    """

    boxes_xyxy: Tensor
    class_ids: Tensor
    is_object: Tensor


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The objects of each image of a batch.

    Attributes:
        boxes_xyxy: (M, 4) float32 an image, in pixels of the network's input; M may be 0.
        class_ids: (M,) int64 an image.
        is_class_only: for each image whether its boxes say nothing, so that it teaches classes alone (YOLO9000);
            empty where none is.
    """

    boxes_xyxy: Sequence[Tensor]
    class_ids: Sequence[Tensor]
    is_class_only: Sequence[bool] = ()

    def __post_init__(self) -> None:
        if len(self.is_class_only) not in (0, len(self.boxes_xyxy)):
            raise InputError(
                "Targets",
                expected=f"is_class_only of {len(self.boxes_xyxy)} images, or of none",
                got=f"{len(self.is_class_only)}",
                fix="pass one entry an image",
            )
        if len(self.boxes_xyxy) != len(self.class_ids):
            raise InputError(
                "Targets",
                expected="boxes and class ids of the same number of images",
                got=f"{len(self.boxes_xyxy)} and {len(self.class_ids)}",
                fix="pass one entry of each an image",
            )
        for boxes, class_ids in zip(self.boxes_xyxy, self.class_ids, strict=True):
            if boxes.ndim != 2 or boxes.shape[1] != 4 or class_ids.shape != boxes.shape[:1]:
                raise InputError(
                    "Targets",
                    expected="boxes (M, 4) and class ids (M,)",
                    got=f"{tuple(boxes.shape)} and {tuple(class_ids.shape)}",
                    fix="reshape them",
                )

    def __len__(self) -> int:
        return len(self.boxes_xyxy)

    def to(self, device: torch.device) -> Targets:
        """The same targets on another device."""
        return Targets(
            boxes_xyxy=[boxes.to(device, non_blocking=True) for boxes in self.boxes_xyxy],
            class_ids=[class_ids.to(device, non_blocking=True) for class_ids in self.class_ids],
            is_class_only=self.is_class_only,
        )

    def without_class_only(self) -> Targets:
        """The same targets, the images that teach classes alone without objects."""
        if not any(self.is_class_only):
            return self
        pairs = list(zip(self.boxes_xyxy, self.class_ids, self.is_class_only, strict=True))
        return Targets(
            boxes_xyxy=[boxes[:0] if class_only else boxes for boxes, _, class_only in pairs],
            class_ids=[class_ids[:0] if class_only else class_ids for _, class_ids, class_only in pairs],
        )

    def padded(self, device: torch.device) -> PaddedTargets:
        """Tensors of one size on `device`; G is 0 where no image has an object."""
        counts = [len(boxes) for boxes in self.boxes_xyxy]
        batch_size, most = len(counts), max(counts, default=0)
        boxes_xyxy = torch.zeros(batch_size, most, 4)
        class_ids = torch.zeros(batch_size, most, dtype=torch.int64)
        is_object = torch.zeros(batch_size, most, dtype=torch.bool)
        for row, count in enumerate(counts):
            boxes_xyxy[row, :count] = self.boxes_xyxy[row]
            class_ids[row, :count] = self.class_ids[row]
            is_object[row, :count] = True
        return PaddedTargets(
            boxes_xyxy=boxes_xyxy.to(device), class_ids=class_ids.to(device), is_object=is_object.to(device)
        )
