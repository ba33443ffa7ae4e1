"""Sines and cosines that tell an attention where on the map a feature lies.

Source: Carion et al., End-to-End Object Detection with Transformers, ECCV 2020, appendix A.4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000.0
_EPSILON = 1e-6


def sine_encoding(grid_hw: tuple[int, int], width: int) -> Tensor:
    """The encoding of a map whose rows and columns are scaled to 0..2 pi.

    Args:
        grid_hw: rows and columns.
        width: of the features; a multiple of 4.

    Returns:
        (H * W, width): half of it for the row, half for the column, sines and cosines alternating.
    """
    rows, columns = grid_hw
    y = torch.arange(1, rows + 1, dtype=torch.float32) / (rows + _EPSILON) * (2 * math.pi)
    x = torch.arange(1, columns + 1, dtype=torch.float32) / (columns + _EPSILON) * (2 * math.pi)
    of_row = _waves(y, width // 2)[:, None].expand(rows, columns, width // 2)
    of_column = _waves(x, width // 2)[None].expand(rows, columns, width // 2)
    return torch.cat([of_row, of_column], dim=2).reshape(rows * columns, width)


def _waves(positions: Tensor, count: int) -> Tensor:
    """(L,) to (L, count): sin and cos of the position at falling frequencies, side by side."""
    index = torch.arange(count, dtype=torch.float32)
    wavelengths = TEMPERATURE ** (2 * torch.div(index, 2, rounding_mode="floor") / count)
    angles = positions[:, None] / wavelengths  # (L, count)
    return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)
