"""Which anchors and cells of a level learn which objects, by the ratios of their sides.

An anchor learns an object where neither side of the one is `threshold` times the other's or more. It does so in the
cell that holds the object's centre and in the nearest cell beside it and above or below it, so in up to three cells.

Source: the public description of YOLOv5's target assignment (its documentation, "Build targets").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from boxwright.models.common.targets import Targets

# A side of an object and of its anchor may differ by less than this factor, either way.
RATIO_THRESHOLD = 4.0


@dataclass(frozen=True, kw_only=True)
class RatioMatches:
    """P pairs of a prediction and an object.

    Attributes:
        image: (P,) index in the batch.
        prediction: (P,) index in the level's predictions, ordered by row, column, anchor.
        anchor: (P,) index in the cell.
        cells_xy: (P, 2) column and row.
        boxes_xyxy: (P, 4) of the objects.
        class_ids: (P,) of the objects.
    """

    image: Tensor
    prediction: Tensor
    anchor: Tensor
    cells_xy: Tensor
    boxes_xyxy: Tensor
    class_ids: Tensor


def side_ratios(sizes_wh: Tensor, anchors_wh: Tensor) -> Tensor:
    """The larger of the two ratios, each turned so that it is at least 1, of every size to every anchor.

    Args:
        sizes_wh: (M, 2) of objects.
        anchors_wh: (A, 2).

    Returns:
        (M, A).
    """
    ratios = sizes_wh[:, None] / anchors_wh[None]  # (M, A, 2)
    return torch.maximum(ratios, 1 / ratios).amax(dim=2)


def neighbour_cells(centres_xy: Tensor, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The cells that learn an object, by its centre.

    Args:
        centres_xy: (M, 2) in cells.
        grid_hw: rows and columns.

    Returns:
        Cells (M, 3, 2), column and row: its own, the nearer one beside it, the nearer one above or below; and whether
        each counts, (M, 3): those outside of the grid do not, nor those of a centre exactly between two.
    """
    limits = torch.tensor([grid_hw[1] - 1, grid_hw[0] - 1], device=centres_xy.device)
    own = torch.minimum(centres_xy.floor().long().clamp(min=0), limits)
    towards = (centres_xy - own - 0.5).sign().long()  # (M, 2)
    beside, above = own + towards * own.new_tensor([1, 0]), own + towards * own.new_tensor([0, 1])
    cells = torch.stack([own, beside, above], dim=1)  # (M, 3, 2)
    is_inside = ((cells >= 0) & (cells <= limits)).all(dim=2)
    has_side = torch.cat([torch.ones_like(towards[:, :1]), towards], dim=1) != 0  # (M, 3)
    return cells, is_inside & has_side


@torch.no_grad()
def match_by_ratio(
    targets: Targets,
    anchors_wh: Tensor,
    *,
    grid_hw: tuple[int, int],
    stride: float,
    threshold: float = RATIO_THRESHOLD,
) -> RatioMatches:
    """All pairs of a level for a batch.

    Args:
        targets: in network pixels.
        anchors_wh: (A, 2) of the level, in pixels.
        grid_hw: rows and columns of the level.
        stride: pixels a cell.
        threshold: the ratio of sides from which an anchor does not learn an object.
    """
    device, num_anchors = anchors_wh.device, len(anchors_wh)
    counts = [len(boxes) for boxes in targets.boxes_xyxy]
    image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device)  # (M,)
    boxes = torch.cat([boxes.to(device) for boxes in targets.boxes_xyxy])  # (M, 4)
    class_ids = torch.cat([class_ids.to(device) for class_ids in targets.class_ids])
    sizes_wh = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)
    fits = side_ratios(sizes_wh, anchors_wh) < threshold  # (M, A)
    cells, counted = neighbour_cells((boxes[:, :2] + boxes[:, 2:]) / 2 / stride, grid_hw)
    row, anchor, place = (fits[:, :, None] & counted[:, None, :]).nonzero(as_tuple=True)
    cells_xy = cells[row, place]  # (P, 2)
    return RatioMatches(
        image=image[row],
        prediction=(cells_xy[:, 1] * grid_hw[1] + cells_xy[:, 0]) * num_anchors + anchor,
        anchor=anchor,
        cells_xy=cells_xy,
        boxes_xyxy=boxes[row],
        class_ids=class_ids[row],
    )
