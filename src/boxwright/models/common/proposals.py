"""Region proposals of a batch in tensors of one size, and the regions that are pooled for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boxwright.core.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """The proposals of each image, best first.

    The padding is the empty box 0. Whatever is decoded from an empty box is empty too, so the least size of the
    DecodeNMS behind the box head drops it, and no part of the graph needs to know how many proposals there are.

    Attributes:
        boxes_xyxy: (B, P, 4) pixels of the network's input.
        counts: (B,) int64, how many of them are no padding.
    """

    boxes_xyxy: Tensor
    counts: Tensor

    def of_image(self, row: int) -> Tensor:
        """The proposals (N, 4) of one image, without padding."""
        return self.boxes_xyxy[row, : int(self.counts[row])]


def check_proposals(boxes_xyxy: Sequence[Tensor], batch_size: int) -> None:
    """Raise `InputError` where proposals from outside are not (N, 4) finite numbers for each image."""
    got = None
    if len(boxes_xyxy) != batch_size:
        got = f"those of {len(boxes_xyxy)} images"
    for row, boxes in enumerate(boxes_xyxy):
        if not isinstance(boxes, Tensor):
            got = got or f"{type(boxes).__name__} for image {row}"
        elif boxes.ndim != 2 or boxes.shape[1] != 4:
            got = got or f"{tuple(boxes.shape)} for image {row}"
        elif not bool(boxes.isfinite().all()):
            got = got or f"a coordinate that is no number for image {row}"
    if got is not None:
        raise InputError(
            "proposals",
            expected=f"a tensor of finite boxes (N, 4) xyxy for each of {batch_size} images",
            got=got,
            fix="give such tensors, (0, 4) where there is nothing",
        )


def pad_proposals(boxes_xyxy: Sequence[Tensor], image_size_hw: Tensor, *, at_least: int = 1) -> Proposals:
    """Proposals from outside, clipped to their images; those that lie outside become empty and count for nothing.

    Args:
        boxes_xyxy: (N, 4) an image; N may be 0 and differ.
        image_size_hw: (B, 2).
        at_least: length of the padded tensors, so that no network meets an empty one.
    """
    check_proposals(boxes_xyxy, len(image_size_hw))
    rows = []
    for boxes, size_hw in zip(boxes_xyxy, image_size_hw, strict=True):
        upper = size_hw.flip(0).repeat(2)  # x, y, x, y
        clipped = torch.minimum(boxes.to(image_size_hw).clamp(min=0), upper)
        rows.append(clipped[(clipped[:, 2:] > clipped[:, :2]).all(dim=1)])
    most = max([at_least, *(len(boxes) for boxes in rows)])
    padded = image_size_hw.new_zeros(len(rows), most, 4)
    for row, boxes in enumerate(rows):
        padded[row, : len(boxes)] = boxes
    counts = torch.tensor([len(boxes) for boxes in rows], device=padded.device)
    return Proposals(boxes_xyxy=padded, counts=counts)


def as_rois(boxes_xyxy: Tensor) -> Tensor:
    """Regions (B * P, 5), each the number of its image and a box, of boxes (B, P, 4)."""
    batch, num_boxes, _ = boxes_xyxy.shape
    numbers = torch.arange(batch, device=boxes_xyxy.device, dtype=boxes_xyxy.dtype)
    return torch.cat([numbers[:, None, None].expand(batch, num_boxes, 1), boxes_xyxy], dim=2).flatten(0, 1)


def rois_of_lists(boxes_xyxy: Sequence[Tensor]) -> Tensor:
    """Regions (K, 5), each the number of its image and a box, of boxes (N, 4) an image."""
    rows = [torch.cat([boxes.new_full((len(boxes), 1), row), boxes], dim=1) for row, boxes in enumerate(boxes_xyxy)]
    return torch.cat(rows)


def canvas_size_hw(images: Tensor, pixel_mask: Tensor | None) -> Tensor:
    """Height and width (B, 2) of each image on the network's input (B, 3, H, W): all of it, or what the mask marks.

    Args:
        images: (B, 3, H, W).
        pixel_mask: (B, H, W), 1 where the image is; it begins in the top left corner.
    """
    if pixel_mask is None:
        return images.new_tensor(images.shape[-2:]).expand(images.shape[0], 2)
    return torch.stack([pixel_mask[:, :, 0].sum(dim=1), pixel_mask[:, 0, :].sum(dim=1)], dim=1).to(images.dtype)
