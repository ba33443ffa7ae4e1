"""Denoising: in training a set detector is also given the objects themselves, spoilt, and told which query is which.

Which query answers for which object is then known and needs no matching, which is what makes set detectors slow to
learn. In use there are no such queries.

Sources: Li et al., DN-DETR, CVPR 2022, sec. 4; Zhang et al., DINO, ICLR 2023, sec. 3.3, for the negative ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boxwright.models.common.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

# Half of this part of the classes is replaced by a random one.
CLASS_NOISE = 0.5


@dataclass(frozen=True, kw_only=True)
class SpoiltQueries:
    """Queries made of the objects of a batch, D for each image: groups of as many as the fullest image has objects.

    Attributes:
        class_ids: (B, D); the number of classes where an image has fewer objects than another.
        boxes: (B, D, 4) as centre, width and height relative to the input.
        may_see: (D + Q, D + Q) bool, which query (row) may attend to which; those of the network come last.
        matches: of each image the queries that are to find an object, and which; the others are to find none.
        num_groups: how often each object is to be found.
    """

    class_ids: Tensor
    boxes: Tensor
    may_see: Tensor
    matches: tuple[tuple[Tensor, Tensor], ...]
    num_groups: int


@torch.no_grad()
def spoil_objects(
    boxes: Sequence[Tensor], class_ids: Sequence[Tensor], *, num_classes: int, num_spoilt: int, num_queries: int
) -> SpoiltQueries | None:
    """Make queries of the objects of a batch.

    Each group has every object twice: moved by less than half its size, to be found, and by up to all of it, to be
    called background.

    Args:
        boxes: (M, 4) an image as centre, width and height relative to the input.
        class_ids: (M,) an image.
        num_classes: of the detector.
        num_spoilt: objects that are to be found again, about; at least one group.
        num_queries: of the network itself.

    Returns:
        None where the batch has no object.
    """
    most = max((len(rows) for rows in boxes), default=0)
    if most == 0:
        return None
    num_groups, device = max(1, num_spoilt // most), boxes[0].device
    padded_boxes = torch.zeros(len(boxes), most, 4, device=device)
    padded_ids = torch.full((len(boxes), most), num_classes, dtype=torch.int64, device=device)
    for row, (own_boxes, own_ids) in enumerate(zip(boxes, class_ids, strict=True)):
        padded_boxes[row, : len(own_boxes)] = own_boxes
        padded_ids[row, : len(own_ids)] = own_ids
    starts = torch.arange(num_groups, device=device) * 2 * most
    matches = []
    for rows in boxes:
        objects = torch.arange(len(rows), device=device)
        matches.append(((starts[:, None] + objects).flatten(), objects.repeat(num_groups)))
    return SpoiltQueries(
        class_ids=_spoilt_classes(padded_ids.repeat(1, 2 * num_groups), num_classes),
        boxes=_spoilt_boxes(padded_boxes.repeat(1, 2 * num_groups, 1), most),
        may_see=_views(num_groups, 2 * most, num_queries).to(device),
        matches=tuple(matches),
        num_groups=num_groups,
    )


def _spoilt_classes(class_ids: Tensor, num_classes: int) -> Tensor:
    is_replaced = (torch.rand(class_ids.shape, device=class_ids.device) < CLASS_NOISE / 2) & (class_ids < num_classes)
    return torch.where(is_replaced, torch.randint_like(class_ids, num_classes), class_ids)


def _spoilt_boxes(boxes: Tensor, most: int) -> Tensor:
    """Each edge moved by up to half a side, and where the copy is a negative one by half a side to a whole one."""
    is_negative = (torch.arange(boxes.shape[1], device=boxes.device) // most) % 2 == 1
    part = torch.rand_like(boxes) + is_negative[:, None]
    sign = torch.randint_like(boxes, 2) * 2 - 1
    half_sides = boxes[..., 2:].repeat(1, 1, 2) / 2
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + sign * part * half_sides).clamp(0, 1)).clamp(min=0)


def _views(num_groups: int, group_size: int, num_queries: int) -> Tensor:
    """Nobody sees another group; the network's own queries see none."""
    group = torch.arange(num_groups * group_size) // group_size
    group = torch.cat([group, torch.full((num_queries,), -1)])
    return (group[:, None] == group[None]) | (group[None] == -1)
