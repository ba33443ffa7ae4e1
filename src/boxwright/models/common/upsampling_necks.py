"""Necks that bring the features of a backbone up to one map of stride 4."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_BILINEAR = (0.25, 0.75, 0.75, 0.25)


def _conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class DeconvolutionNeck(nn.Module):
    """Transposed convolutions on the coarsest map, each doubling it.

    Source: Xiao et al., Simple Baselines, ECCV 2018, sec. 2.
    """

    def __init__(self, in_channels: int, channels: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for out_channels in channels:
            layers += [
                nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
            in_channels = out_channels
        self.layers = nn.Sequential(*layers)
        self.out_channels = in_channels

    def forward(self, stages: list[Tensor]) -> Tensor:
        features: Tensor = self.layers(stages[-1])
        return features


class AggregationNode(nn.Module):
    """Merges a map with one of half its size: projected, enlarged, concatenated, convolved."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Identity() if in_channels == channels else _conv_bn_relu(in_channels, channels, 1)
        self.enlarge = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, groups=channels, bias=False)
        with torch.no_grad():
            taps = torch.tensor(_BILINEAR)
            self.enlarge.weight.copy_(taps[:, None] * taps)
        self.merge = _conv_bn_relu(2 * channels, channels, 3)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        merged: Tensor = self.merge(torch.cat([fine, self.enlarge(self.project(coarse))], dim=1))
        return merged


class AggregationStage(nn.Module):
    """One level with all that is coarser: each map in turn is merged into it, and every step is kept."""

    def __init__(self, fine_channels: int, coarse_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.project = nn.Identity() if fine_channels == channels else _conv_bn_relu(fine_channels, channels, 1)
        self.nodes = nn.ModuleList(AggregationNode(width, channels) for width in coarse_channels)

    def forward(self, fine: Tensor, coarse: list[Tensor]) -> list[Tensor]:
        merged, steps = self.project(fine), []
        for node, features in zip(self.nodes, coarse, strict=True):
            merged = node(merged, features)
            steps.append(merged)
        return steps


class AggregationNeck(nn.Module):
    """Iterative deep aggregation from the coarsest level to the finest.

    Args:
        in_channels: of the backbone's maps, the finest first.
        channels: of what each level but the coarsest gives.

    Source: Yu et al., Deep Layer Aggregation, CVPR 2018, sec. 3.3.
    """

    def __init__(self, in_channels: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__()
        stages: list[AggregationStage] = []
        coarse = [in_channels[-1]]
        for fine, width in zip(reversed(in_channels[:-1]), reversed(channels), strict=True):
            stages.append(AggregationStage(fine, coarse, width))
            # The next stage gets this level as the backbone gave it, and every step that was made from it.
            coarse = [fine, *[width] * len(coarse)]
        self.stages = nn.ModuleList(stages)
        self.out_channels = channels[0]

    def forward(self, stages: list[Tensor]) -> Tensor:
        coarse = [stages[-1]]
        for stage, fine in zip(self.stages, reversed(stages[:-1]), strict=True):
            steps = stage(fine, coarse)
            coarse = [fine, *steps]
        return coarse[-1]
