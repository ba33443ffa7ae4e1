"""BiFPN: a pyramid whose levels are merged top-down and bottom-up, over and over, with learned weights.

Source: Tan et al., EfficientDet, CVPR 2020, sec. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Padding = Literal["same", "symmetric"]
Fusion = Literal["fast", "sum"]
NUM_LEVELS = 5  # P3 to P7
BN_EPS = 1e-3
_FUSION_EPS = 1e-4


class LevelNorm(nn.BatchNorm2d):
    """Batch normalisation that uses its running statistics where a coarse level has a single value a channel."""

    def forward(self, features: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        if self.training and batch * height * width == 1:
            return functional.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(features)


class SeparableConv(nn.Module):
    """A depthwise 3x3 and a pointwise convolution with nothing in between."""

    def __init__(self, in_channels: int, out_channels: int, *, bias: bool) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        mixed: Tensor = self.pointwise(self.depthwise(features))
        return mixed


class Projection(nn.Module):
    """A 1x1 convolution to the pyramid's width, and normalisation."""

    def __init__(self, in_channels: int, channels: int, *, bias: bool, bn_momentum: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=bias)
        self.norm = LevelNorm(channels, eps=BN_EPS, momentum=bn_momentum)

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = self.norm(self.conv(features))
        return projected


def halve(features: Tensor, padding: Padding) -> Tensor:
    """Max-pool 3x3 of stride 2: (B, C, H, W) to (B, C, ceil(H / 2), ceil(W / 2)).

    TensorFlow's "same" padding puts one row more at the end where the side is even, and is the symmetric one where it
    is odd. An even side needs no padding at all if the last window may reach beyond the edge.
    """
    if padding == "symmetric":
        return functional.max_pool2d(features, 3, stride=2, padding=1)
    odd_hw = (features.shape[2] % 2, features.shape[3] % 2)
    return functional.max_pool2d(features, 3, stride=2, padding=odd_hw, ceil_mode=True)


def enlarge(features: Tensor, like: Tensor) -> Tensor:
    """Nearest neighbours, to the height and width of another map."""
    return functional.interpolate(features, size=(like.shape[2], like.shape[3]), mode="nearest")


class FusionNode(nn.Module):
    """Merges maps of one size: weighted sum, activation, separable convolution, normalisation.

    Args:
        in_channels: of the first map, which is projected where it is not as wide as the pyramid.
        channels: of the pyramid.
        num_inputs: maps to merge.
        fusion: "fast" for weights that are rectified and divided by their sum, "sum" for none.
        bias: whether convolutions have a bias although normalisation follows.
        bn_momentum: of the normalisation.
    """

    def __init__(
        self, in_channels: int, channels: int, num_inputs: int, *, fusion: Fusion, bias: bool, bn_momentum: float
    ) -> None:
        super().__init__()
        self.project: nn.Module = nn.Identity()
        if in_channels != channels:
            self.project = Projection(in_channels, channels, bias=bias, bn_momentum=bn_momentum)
        self.weights = nn.Parameter(torch.ones(num_inputs)) if fusion == "fast" else None
        self.conv = SeparableConv(channels, channels, bias=bias)
        self.norm = LevelNorm(channels, eps=BN_EPS, momentum=bn_momentum)

    def forward(self, own: Tensor, others: Sequence[Tensor]) -> Tensor:
        maps = [self.project(own), *others]
        if self.weights is not None:
            rectified = self.weights.relu()
            shares = (rectified / (rectified.sum() + _FUSION_EPS)).to(own.dtype)
            maps = [features * share for features, share in zip(maps, shares.unbind(), strict=True)]
        total = maps[0]
        for features in maps[1:]:
            total = total + features
        merged: Tensor = self.norm(self.conv(functional.silu(total)))
        return merged


class BiFpnCell(nn.Module):
    """One pass from the coarsest level to the finest and one back.

    Nodes 0 to 3 make P6 to P3 on the way down, nodes 4 to 7 make P4 to P7 on the way up.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        padding: Padding,
        fusion: Fusion,
        bias: bool,
        bn_momentum: float,
    ) -> None:
        super().__init__()
        self.padding: Padding = padding
        levels = [*range(NUM_LEVELS - 2, -1, -1), *range(1, NUM_LEVELS)]
        # On the way up all levels but the coarsest have a map from the way down as well.
        counts = [2] * (NUM_LEVELS - 1) + [3] * (NUM_LEVELS - 2) + [2]
        self.nodes = nn.ModuleList(
            FusionNode(in_channels[level], channels, count, fusion=fusion, bias=bias, bn_momentum=bn_momentum)
            for level, count in zip(levels, counts, strict=True)
        )

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        down = [levels[-1]]  # coarsest first
        for node, own in zip(self.nodes[: NUM_LEVELS - 1], reversed(levels[:-1]), strict=True):
            down.append(node(own, [enlarge(down[-1], own)]))
        up = [down[-1]]  # finest first
        for place, (node, own) in enumerate(zip(self.nodes[NUM_LEVELS - 1 :], levels[1:], strict=True), start=1):
            from_above = [] if place == NUM_LEVELS - 1 else [down[NUM_LEVELS - 1 - place]]
            up.append(node(own, [*from_above, halve(up[-1], self.padding)]))
        return up


class BiFpn(nn.Module):
    """Features of strides 8, 16 and 32 to the levels P3 to P7, all of one width.

    Args:
        in_channels: of the backbone's three maps.
        channels: of every level.
        num_cells: how often the levels are merged.
        padding: of the max-pools.
        fusion: see `FusionNode`.
        bias: likewise.
        bn_momentum: likewise.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        num_cells: int,
        padding: Padding,
        fusion: Fusion,
        bias: bool,
        bn_momentum: float,
    ) -> None:
        super().__init__()
        self.padding: Padding = padding
        self.project_p6 = Projection(in_channels[-1], channels, bias=bias, bn_momentum=bn_momentum)
        widths = [[*in_channels, channels, channels]] + [[channels] * NUM_LEVELS] * (num_cells - 1)
        self.cells = nn.ModuleList(
            BiFpnCell(width, channels, padding=padding, fusion=fusion, bias=bias, bn_momentum=bn_momentum)
            for width in widths
        )

    def forward(self, stages: list[Tensor]) -> list[Tensor]:
        p6 = halve(self.project_p6(stages[-1]), self.padding)
        levels = [*stages, p6, halve(p6, self.padding)]
        for cell in self.cells:
            levels = cell(levels)
        return levels
