"""RT-DETR's encoder: attention within the coarsest level, then convolutions across the levels, down and up again.

Source: Zhao et al., DETRs Beat YOLOs on Real-time Object Detection, CVPR 2024, sec. 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.models.common.attention import MultiHeadAttention
from boxwright.models.common.layers import ConvBnAct
from boxwright.models.common.position_encoding import TEMPERATURE

NUM_LEVELS = 3
_BLOCKS_OF_A_STAGE = 3


def corner_sine_encoding(grid_hw: tuple[int, int], width: int) -> Tensor:
    """The encoding of a map by whole rows and columns from its corner.

    Args:
        grid_hw: rows and columns.
        width: of the features; a multiple of 4.

    Returns:
        (H * W, width): sines and cosines of the row, then of the column.
    """
    rows, columns = grid_hw
    frequencies = 1 / TEMPERATURE ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    of_row = torch.arange(rows, dtype=torch.float64)[:, None] * frequencies  # (H, width / 4)
    of_column = torch.arange(columns, dtype=torch.float64)[:, None] * frequencies
    row_waves = torch.cat([of_row.sin(), of_row.cos()], dim=1)[:, None].expand(rows, columns, -1)
    column_waves = torch.cat([of_column.sin(), of_column.cos()], dim=1)[None].expand(rows, columns, -1)
    return torch.cat([row_waves, column_waves], dim=2).flatten(0, 1).float()


def conv_norm(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, activation: nn.Module | None = None
) -> ConvBnAct:
    """Convolution, batch normalisation as PyTorch has it by default, and SiLU where no other activation is given."""
    return ConvBnAct(inputs, outputs, kernel, stride=stride, activation=activation, bn_eps=1e-5, bn_momentum=0.1)


class _RepBlock(nn.Module):
    """A 3x3 and a 1x1 convolution side by side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = conv_norm(width, width, 3, activation=nn.Identity())
        self.conv2 = conv_norm(width, width, 1, activation=nn.Identity())

    def forward(self, features: Tensor) -> Tensor:
        return functional.silu(self.conv1(features) + self.conv2(features))


class _FusionBlock(nn.Module):
    """Two levels, concatenated, to one: a path of blocks and a short one, added."""

    def __init__(self, width: int, expansion: float) -> None:
        super().__init__()
        hidden = int(width * expansion)
        self.conv1 = conv_norm(2 * width, hidden, 1)
        self.conv2 = conv_norm(2 * width, hidden, 1)
        self.bottlenecks = nn.Sequential(*(_RepBlock(hidden) for _ in range(_BLOCKS_OF_A_STAGE)))
        self.conv3 = conv_norm(hidden, width, 1) if hidden != width else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.conv3(self.bottlenecks(self.conv1(features)) + self.conv2(features))
        return result


class _AttentionLayer(nn.Module):
    def __init__(self, width: int, num_heads: int, feed_forward: int) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(width, num_heads)
        self.linear1, self.linear2 = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, features: Tensor, positions: Tensor) -> Tensor:
        placed = features + positions
        features = self.norm1(features + self.self_attn(placed, placed, features))
        result: Tensor = self.norm2(features + self.linear2(functional.gelu(self.linear1(features))))
        return result


class _AttentionWithinLevel(nn.Module):
    def __init__(self, width: int, num_heads: int, feed_forward: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_AttentionLayer(width, num_heads, feed_forward)])

    def forward(self, level: Tensor) -> Tensor:
        """(B, W, H, W') to the same shape."""
        batch, width, rows, columns = level.shape
        positions = corner_sine_encoding((rows, columns), width).to(level)[None]
        features = level.flatten(2).transpose(1, 2)  # (B, S, W)
        for layer in self.layers:
            features = layer(features, positions)
        return features.transpose(1, 2).reshape(batch, width, rows, columns)


class HybridEncoder(nn.Module):
    """Three levels of one width, mixed.

    Args:
        width: of every level.
        num_heads: of the attention.
        feed_forward: width between the two layers after the attention.
        expansion: width inside the fusion blocks, as a part of `width`.
    """

    def __init__(self, width: int, *, num_heads: int, feed_forward: int, expansion: float) -> None:
        super().__init__()
        self.aifi = nn.ModuleList([_AttentionWithinLevel(width, num_heads, feed_forward)])
        steps = range(NUM_LEVELS - 1)
        self.lateral_convs = nn.ModuleList(conv_norm(width, width, 1) for _ in steps)
        self.fpn_blocks = nn.ModuleList(_FusionBlock(width, expansion) for _ in steps)
        self.downsample_convs = nn.ModuleList(conv_norm(width, width, 3, stride=2) for _ in steps)
        self.pan_blocks = nn.ModuleList(_FusionBlock(width, expansion) for _ in steps)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Maps (B, W, h, w) from fine to coarse, to maps of the same shapes."""
        finer, current = levels[:-1], self.aifi[0](levels[-1])
        kept = []
        for lateral, block, level in zip(self.lateral_convs, self.fpn_blocks, reversed(finer), strict=True):
            current = lateral(current)
            kept.append(current)
            current = block(torch.cat([functional.interpolate(current, scale_factor=2.0), level], dim=1))
        results = [current]
        for downsample, block, level in zip(self.downsample_convs, self.pan_blocks, reversed(kept), strict=True):
            current = block(torch.cat([downsample(current), level], dim=1))
            results.append(current)
        return results
