"""Heat maps with a Gaussian splat at each object's centre: their targets, their loss, and their peaks.

Sources: Zhou et al., Objects as Points, 2019, sec. 3; Law and Deng, CornerNet, ECCV 2018, sec. 3.2.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

RadiusRule = Literal["public", "exact"]
# Two boxes whose corners lie less than the radius apart overlap at least by this.
MIN_OVERLAP = 0.7
# What a place that is no peak gets. Its sigmoid is exactly 0 in float32, so no threshold lets it through.
NO_PEAK = -200.0


def splat_radii(sizes_wh: Tensor, *, rule: RadiusRule = "public", min_overlap: float = MIN_OVERLAP) -> Tensor:
    """How far, in cells, an object's centre may be off and its box still overlap it enough.

    The bound is the least of three cases: both corners of the box move the same way, both inwards, both outwards by r.
    With s = w + h and a = w * h, an overlap of o is reached at the roots of

        r^2 - s r + a (1 - o) / (1 + o)    4 r^2 - 2 s r + a (1 - o)    4 o r^2 + 2 o s r - a (1 - o)

    The code that the public weights were trained with takes (-b + root) / 2 for all of them instead of the proper
    roots. What is left of that is the third case, 4 o (2.8) times too large, and it is what everybody has trained with;
    the exact radius gives most objects a splat of one cell.

    Args:
        sizes_wh: (M, 2) in cells.
        rule: "public" as that code has it, "exact" as the equations say.
        min_overlap: o.

    Returns:
        (M,) whole numbers, float32.
    """
    width, height = sizes_wh.ceil().unbind(dim=1)
    total, area, o = width + height, width * height, min_overlap
    outwards_root = ((2 * o * total).square() + 16 * o * (1 - o) * area).sqrt()
    outwards = -2 * o * total + outwards_root
    if rule == "public":
        return (outwards / 2).floor()
    same_way = (total - (total.square() - 4 * area * (1 - o) / (1 + o)).sqrt()) / 2
    inwards = (2 * total - (4 * total.square() - 16 * area * (1 - o)).sqrt()) / 8
    return torch.stack([same_way, inwards, outwards / (8 * o)]).amin(dim=0).floor()


def splat_heatmap(
    cells_xy: Tensor, radii: Tensor, class_ids: Tensor, *, num_classes: int, grid_hw: tuple[int, int]
) -> Tensor:
    """The target: a Gaussian about each object's cell, 1 at the cell, 0 beyond the radius, the larger where two meet.

    Args:
        cells_xy: (M, 2) whole numbers inside the grid.
        radii: (M,) in cells; the deviation is a sixth of the diameter, 2 r + 1.
        class_ids: (M,) int64.
        num_classes: C.
        grid_hw: rows and columns.

    Returns:
        (C, rows, columns) float32.
    """
    device = cells_xy.device
    along_x = torch.arange(grid_hw[1], device=device) - cells_xy[:, :1]  # (M, columns)
    along_y = torch.arange(grid_hw[0], device=device) - cells_xy[:, 1:]  # (M, rows)
    variances = ((2 * radii + 1) / 6).square()[:, None]
    gauss_x = (along_x.square() / (-2 * variances)).exp() * (along_x.abs() <= radii[:, None])
    gauss_y = (along_y.square() / (-2 * variances)).exp() * (along_y.abs() <= radii[:, None])
    splats = gauss_y[:, :, None] * gauss_x[:, None, :]  # (M, rows, columns)
    heatmap = torch.zeros(num_classes, *grid_hw, device=device)
    index = class_ids[:, None, None].expand_as(splats)
    return heatmap.scatter_reduce(0, index, splats, reduce="amax")


def penalty_reduced_focal_loss(
    logits: Tensor, heatmaps: Tensor, *, alpha: float = 2.0, beta: float = 4.0, label_smoothing: float = 0.0
) -> Tensor:
    """Focal loss that forgives what lies near a centre, divided by the number of centres.

    Args:
        logits: (...) of any shape.
        heatmaps: likewise; exactly 1 at the centres.
        alpha: power of the error of the score.
        beta: power of the distance of the target from 1.
        label_smoothing: epsilon; the score at a centre is to be 1 - epsilon / 2, at which it costs nothing.

    Source: Objects as Points, eq. 1; for a target below 1 the quality focal loss of Li et al., Generalized Focal Loss,
    NeurIPS 2020.
    """
    is_centre = heatmaps == 1
    scores = logits.sigmoid()
    wanted = 1 - label_smoothing / 2
    log_likelihood = wanted * functional.logsigmoid(logits) + (1 - wanted) * functional.logsigmoid(-logits)
    at_centres = (wanted - scores).abs() ** alpha * log_likelihood
    elsewhere = (1 - heatmaps) ** beta * scores**alpha * functional.logsigmoid(-logits)
    num_centres = is_centre.sum().clamp(min=1)
    return -torch.where(is_centre, at_centres, elsewhere).sum() / num_centres


def keep_peaks(logits: Tensor) -> Tensor:
    """Logits (B, C, H, W) with `NO_PEAK` wherever one of the eight neighbours is larger.

    Source: Objects as Points, sec. 3, "From points to bounding boxes".
    """
    return torch.where(logits < functional.max_pool2d(logits, 3, stride=1, padding=1), NO_PEAK, logits)
