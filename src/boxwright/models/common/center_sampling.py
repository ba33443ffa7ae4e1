"""FCOS's targets: which points learn which object, and how central they lie in it.

Source: Tian et al., FCOS: A Simple and Strong Anchor-Free Object Detector, TPAMI 2020, sec. 3.1 to 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from boxwright.models.common.anchor_assignment import BACKGROUND

CENTER_RADIUS = 1.5
# Each level learns the objects whose farthest side is so many pixels from the point.
SCALE_ENDS = (0.0, 64.0, 128.0, 256.0, 512.0, math.inf)


def side_distances(points_xy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """Distances left, top, right, bottom (..., 4) from points (..., 2) to the sides of boxes (..., 4) (eq. 1)."""
    return torch.cat([points_xy - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - points_xy], dim=-1)


def centerness(distances: Tensor) -> Tensor:
    """How central a point lies in its object, 1 in the middle and 0 on a side (eq. 3).

    Args:
        distances: (..., 4) left, top, right, bottom, all positive.

    Returns:
        (...,).
    """
    left, top, right, bottom = distances.unbind(dim=-1)
    across = torch.minimum(left, right) / torch.maximum(left, right)
    down = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (across * down).sqrt()


@torch.no_grad()
def assign_by_center(
    points_xy: Tensor,
    strides: Tensor,
    level_sizes: Sequence[int],
    boxes_xyxy: Tensor,
    *,
    radius: float = CENTER_RADIUS,
    scale_ends: Sequence[float] = SCALE_ENDS,
) -> Tensor:
    """The object of each point: it lies inside near the middle, and the object is of the level's size.

    Args:
        points_xy: (N, 2), by level.
        strides: (N,) of each point's level.
        level_sizes: points of each level.
        boxes_xyxy: (M, 4) of the objects.
        radius: the middle reaches so many strides in each direction.
        scale_ends: where the sizes of one level end and those of the next begin; one more than there are levels.

    Returns:
        (N,) int64: index of the object, the smallest where there are several, or `BACKGROUND`.
    """
    if len(boxes_xyxy) == 0:
        return torch.full((len(points_xy),), BACKGROUND, device=points_xy.device)
    distances = side_distances(points_xy[:, None], boxes_xyxy[None])  # (N, M, 4)
    is_inside = distances.amin(dim=2) > 0
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    offsets = (points_xy[:, None] - centres[None]).abs().amax(dim=2)  # (N, M)
    is_central = offsets < radius * strides[:, None]
    counts = torch.tensor(level_sizes, device=points_xy.device)
    ends = points_xy.new_tensor(scale_ends)
    farthest = distances.amax(dim=2)
    is_of_level = farthest > ends[:-1].repeat_interleave(counts)[:, None]
    is_of_level &= farthest <= ends[1:].repeat_interleave(counts)[:, None]
    sizes = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    areas = torch.where(is_inside & is_central & is_of_level, sizes.prod(dim=1)[None], torch.inf)  # (N, M)
    smallest, assigned = areas.min(dim=1)
    return torch.where(smallest.isfinite(), assigned, BACKGROUND)
