"""A backbone from timm with a feature pyramid on top: levels P3 to P7.

Source: Lin et al., Feature Pyramid Networks, CVPR 2017; P6 and P7 from Lin et al., Focal Loss, ICCV 2017, sec. 4.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import timm
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from boxwright.models.common.stage_widths import stage_widths

PYRAMID_CHANNELS = 256
PYRAMID_STRIDES = (8, 16, 32, 64, 128)
# Torchvision's key names carry the place of each stage in its own list.
_STAGE_KEYS = ("0", "1", "2")


class PyramidBackbone(nn.Module):
    """Images to the maps P3 to P7; its keys are those of torchvision's detectors.

    Args:
        name: of a timm model that gives feature maps.
        p6_from: whether P6 is made from the pyramid's P5 or the backbone's C5.
        channels: of every level.
    """

    def __init__(self, name: str, *, p6_from: Literal["p5", "c5"], channels: int = PYRAMID_CHANNELS) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=(2, 3, 4), pretrained=False)
        widths = stage_widths(self.body)
        # LastLevelP6P7 reads P5 where the two widths are the same, else C5.
        extra = LastLevelP6P7(channels if p6_from == "p5" else widths[-1], channels)
        extra.use_P5 = p6_from == "p5"
        self.fpn = FeaturePyramidNetwork(widths, channels, extra_blocks=extra)

    def forward(self, images: Tensor) -> list[Tensor]:
        stages = self.body(images)
        return list(self.fpn(OrderedDict(zip(_STAGE_KEYS, stages, strict=True))).values())


def pyramid_grids_hw(size_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Rows and columns of P3 to P7 for an input whose sides are multiples of 32."""
    grids = [(size_hw[0] // stride, size_hw[1] // stride) for stride in PYRAMID_STRIDES[:3]]
    for _ in PYRAMID_STRIDES[3:]:
        rows, columns = grids[-1]
        grids.append(((rows + 1) // 2, (columns + 1) // 2))  # 3x3 convolutions of stride 2
    return tuple(grids)


def pyramid_steps_hw(size_hw: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Whole pixels from one cell of P3 to P7 to the next, as torchvision lays its anchors."""
    return tuple((size_hw[0] // rows, size_hw[1] // columns) for rows, columns in pyramid_grids_hw(size_hw))
