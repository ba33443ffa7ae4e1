"""The outputs of heads that predict A boxes a cell with their objectness and classes, as YOLO v2 to v5 do."""

from __future__ import annotations

import torch
from torch import Tensor

BOX_NUMBERS = 5  # x, y, w, h and the objectness


def split_by_cell(output: Tensor, num_anchors: int) -> tuple[Tensor, tuple[int, int]]:
    """(B, A * (5 + C), H, W) to (B, H * W * A, 5 + C), and the grid's rows and columns."""
    batch, channels, rows, columns = output.shape
    by_anchor = output.reshape(batch, num_anchors, channels // num_anchors, rows, columns)
    last = by_anchor.permute(0, 3, 4, 1, 2)  # (B, H, W, A, 5 + C)
    return last.reshape(batch, -1, channels // num_anchors), (rows, columns)


def join_levels(levels: list[Tensor]) -> dict[str, Tensor]:
    """Raw heads of all levels (B, n, 5 + C), in their order."""
    joined = torch.cat(levels, dim=1)  # (B, N, 5 + C)
    return {
        "box_regression": joined[..., :4],
        "class_logits": joined[..., BOX_NUMBERS:],
        "objectness": joined[..., 4],
    }
