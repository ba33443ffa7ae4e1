"""Features of regions, cut out of one map or of the level of a pyramid that fits each region's size.

Sources: He et al., Mask R-CNN, ICCV 2017, sec. 3 (RoIAlign); Girshick, Fast R-CNN, ICCV 2015, sec. 2.1 (RoIPool);
Lin et al., Feature Pyramid Networks, CVPR 2017, eq. 1 (the level of a region).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import roi_align, roi_pool

RoiPoolKind = Literal["align", "pool"]
# A region as large as an image of ImageNet is cut out of the map of stride 2^4.
CANONICAL_SIDE, CANONICAL_LEVEL = 224.0, 4
# A side that is a rounding short of a level's limit belongs to the level.
_LEVEL_SLACK = 1e-6
# Rows and columns behind a map in the mosaic that repeat its last: a sample may lie up to a cell behind it.
_MOSAIC_MARGIN = 2
SAMPLES_A_BIN = 2


class RegionPool(nn.Module):
    """Cuts regions out of feature maps.

    Several maps are laid side by side into one, and each region is moved to the map of its level. So every region is
    pooled once, and no shape depends on how many belong to which level. A region of less than one cell at the right or
    lower edge of the input reads the repeated edge where one map alone would read zeros.

    Args:
        strides: pixels a cell of each map; powers of two.
        side: cells of the pooled features.
        kind: RoIAlign, or the older RoIPool, which takes one map alone.
    """

    def __init__(self, *, strides: Sequence[int], side: int, kind: RoiPoolKind = "align") -> None:
        super().__init__()
        assert kind == "align" or len(strides) == 1, "RoIPool reads one map"
        self.strides = tuple(strides)
        self.side = side
        self.kind = kind

    def forward(self, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Features (K, C, side, side).

        Args:
            maps: (B, C, H, W) for each stride; more are ignored.
            rois: (K, 5), each the number of its image and its box xyxy in pixels of the network's input.
        """
        maps = maps[: len(self.strides)]
        if len(set(self.strides)) == 1:  # the canonical level rule has no choice
            scale = 1.0 / self.strides[0]
            return (
                self._max_pooled(maps[0], rois, scale) if self.kind == "pool" else self._aligned(maps[0], rois, scale)
            )
        mosaic, origins = _mosaic(maps)
        levels = region_levels(rois[:, 1:], self.strides)  # (K,)
        scales = rois.new_tensor([1.0 / stride for stride in self.strides])[levels]
        offsets = rois.new_tensor([[x, y, x, y] for x, y in origins])[levels]  # (K, 4)
        moved = rois[:, 1:] * scales[:, None] + offsets
        return self._aligned(mosaic, torch.cat([rois[:, :1], moved], dim=1), 1.0)

    def _aligned(self, feature_map: Tensor, rois: Tensor, scale: float) -> Tensor:
        size = (self.side, self.side)
        pooled: Tensor = roi_align(feature_map, rois, size, spatial_scale=scale, sampling_ratio=SAMPLES_A_BIN)
        return pooled

    def _max_pooled(self, feature_map: Tensor, rois: Tensor, scale: float) -> Tensor:
        if torch.onnx.is_in_onnx_export():  # torch's exporter has no translation of its own that works
            pooled: Tensor = torch.onnx.ops.symbolic(
                "MaxRoiPool",
                (feature_map, rois),
                {"pooled_shape": [self.side, self.side], "spatial_scale": scale},
                dtype=feature_map.dtype,
                shape=(rois.shape[0], feature_map.shape[1], self.side, self.side),
                version=1,
            )
        else:  # a map in bf16 is pooled in the regions' type, which holds their coordinates
            pooled = roi_pool(feature_map.to(rois.dtype), rois, (self.side, self.side), spatial_scale=scale)
        return pooled.to(feature_map.dtype)


def region_levels(boxes_xyxy: Tensor, strides: Sequence[int]) -> Tensor:
    """Index (K,) of the map that each box is cut out of: floor(k0 + log2(sqrt(w h) / 224)), bounded by the maps.

    Args:
        boxes_xyxy: (K, 4) in pixels.
        strides: of the maps, each twice the one before.
    """
    sides = ((boxes_xyxy[:, 2] - boxes_xyxy[:, 0]) * (boxes_xyxy[:, 3] - boxes_xyxy[:, 1])).clamp(min=0).sqrt()
    # The rule as limits, level by level: logarithms of empty boxes need no special case.
    exponents = [math.log2(stride) - CANONICAL_LEVEL - _LEVEL_SLACK for stride in strides[1:]]
    limits = sides.new_tensor([CANONICAL_SIDE * 2**exponent for exponent in exponents])
    return (sides[:, None] >= limits).sum(dim=1)


def _mosaic(maps: Sequence[Tensor]) -> tuple[Tensor, list[tuple[float, float]]]:
    """One map of several, and the place (x, y) of each on it: the first at the left, the others below each other."""
    first, *others = (functional.pad(part, (0, _MOSAIC_MARGIN, 0, _MOSAIC_MARGIN), mode="replicate") for part in maps)
    width = max(part.shape[3] for part in others)
    column = torch.cat([functional.pad(part, (0, width - part.shape[3])) for part in others], dim=2)
    height = max(first.shape[2], column.shape[2])
    beside = [functional.pad(part, (0, 0, 0, height - part.shape[2])) for part in (first, column)]
    origins, top = [(0.0, 0.0)], 0
    for part in others:
        origins.append((float(first.shape[3]), float(top)))
        top += part.shape[2]
    return torch.cat(beside, dim=3), origins
