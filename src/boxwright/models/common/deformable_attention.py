"""Attention of a query to a few places of each pyramid level that it chooses itself, around its own box.

Source: Zhu et al., Deformable DETR, ICLR 2021, sec. 4.1, with references that are boxes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class DeformableAttention(nn.Module):
    """Samples the levels bilinearly and weighs the samples.

    Args:
        width: of queries and maps.
        num_heads: that the width is divided among.
        num_levels: of the pyramid.
        num_points: that each head samples on each level.
    """

    def __init__(self, width: int, num_heads: int, *, num_levels: int, num_points: int) -> None:
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(width, 2 * samples)
        self.attention_weights = nn.Linear(width, samples)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self._initialise()

    def _initialise(self) -> None:
        """Each head looks into a direction of its own, point after point further away."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=1)
        directions = directions / directions.abs().amax(dim=1, keepdim=True)  # (H, 2)
        distances = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        offsets = directions[:, None, None] * distances[None, None, :, None]  # (H, 1, P, 2)
        offsets = offsets.expand(self.num_heads, self.num_levels, self.num_points, 2)
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(offsets.flatten())
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, queries: Tensor, boxes_cxcywh: Tensor, memory: Tensor, grids_hw: list[tuple[int, int]]) -> Tensor:
        """Attend.

        Args:
            queries: (B, Q, W).
            boxes_cxcywh: (B, Q, 4) relative to the input.
            memory: (B, S, W), the levels one after the other, row by row.
            grids_hw: rows and columns of each level; their products sum to S.

        Returns:
            (B, Q, W).
        """
        batch, num_queries, width = queries.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(queries).view(batch, num_queries, heads, levels * points, 2)
        centres, sizes = boxes_cxcywh[:, :, None, None, :2], boxes_cxcywh[:, :, None, None, 2:]
        places = centres + offsets * sizes * (0.5 / points)  # (B, Q, H, L * P, 2), 0 to 1
        places = (2 * places - 1).transpose(1, 2).flatten(0, 1)  # (B * H, Q, L * P, 2), as grid_sample counts
        weights = self.attention_weights(queries).view(batch, num_queries, heads, levels * points).softmax(dim=3)
        weights = weights.transpose(1, 2).reshape(batch * heads, 1, num_queries, levels * points)
        values = self.value_proj(memory).view(batch, -1, heads, width // heads).permute(0, 2, 3, 1)  # (B, H, W/H, S)
        sampled = [
            functional.grid_sample(
                level.reshape(batch * heads, width // heads, rows, columns), place, align_corners=False
            )
            for level, place, (rows, columns) in zip(
                values.split([rows * columns for rows, columns in grids_hw], dim=3),
                places.split(points, dim=2),
                grids_hw,
                strict=True,
            )
        ]  # (B * H, W / H, Q, P) each
        attended = (torch.cat(sampled, dim=3) * weights).sum(dim=3)  # (B * H, W / H, Q)
        merged: Tensor = self.output_proj(attended.view(batch, width, num_queries).transpose(1, 2))
        return merged
