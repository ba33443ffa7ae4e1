"""The head of RetinaNet and FCOS: one tower of convolutions shared by all levels, and layers that predict from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TOWER_DEPTH = 4
NORM_GROUPS = 32
_FEWEST_OF_GROUP = 8  # channels; 32 groups of 256 channels, as published, have as many
# The score that an untrained head gives to everything. Source: Lin et al., Focal Loss, ICCV 2017, sec. 3.3.
PRIOR_PROBABILITY = 0.01


def conv_tower(channels: int, *, normalised: bool, nested: bool, depth: int = TOWER_DEPTH) -> nn.Sequential:
    """3x3 convolutions with ReLU.

    Args:
        channels: in and out.
        normalised: whether group normalisation follows each convolution, which then has no bias of its own.
        nested: whether each step is a Sequential of its own; torchvision's key names have both forms.
        depth: how many convolutions.
    """
    steps: list[list[nn.Module]] = []
    num_groups = min(NORM_GROUPS, max(1, channels // _FEWEST_OF_GROUP))
    for _ in range(depth):
        convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=not (normalised and nested))
        nn.init.normal_(convolution.weight, std=0.01)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
        norm: list[nn.Module] = [nn.GroupNorm(num_groups, channels)] if normalised else []
        steps.append([convolution, *norm, nn.ReLU(inplace=True)])
    if nested:
        return nn.Sequential(*(nn.Sequential(*step) for step in steps))
    return nn.Sequential(*(layer for step in steps for layer in step))


def prediction_layer(channels: int, outputs: int, *, is_class_layer: bool = False) -> nn.Conv2d:
    """A 3x3 convolution with small weights; a class layer starts at the prior probability."""
    layer = nn.Conv2d(channels, outputs, 3, padding=1)
    nn.init.normal_(layer.weight, std=0.01)
    assert layer.bias is not None
    nn.init.constant_(layer.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY) if is_class_layer else 0.0)
    return layer


def flatten_levels(maps: list[Tensor], width: int) -> Tensor:
    """Maps (B, A * width, H, W) of all levels to (B, N, width), ordered by level, row, column, anchor."""
    rows = []
    for level in maps:
        batch, channels, height, columns = level.shape
        by_anchor = level.view(batch, channels // width, width, height, columns)
        rows.append(by_anchor.permute(0, 3, 4, 1, 2).reshape(batch, -1, width))  # (B, H * W * A, width)
    return torch.cat(rows, dim=1)
