"""Feature maps that two-stage detectors propose regions on and cut regions out of; keys as torchvision's.

Source: Lin et al., Feature Pyramid Networks, CVPR 2017, for the pyramids.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import timm
import torchvision
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from boxwright.models.common.stage_widths import stage_widths

# Where torchvision takes C4 and C5 of MobileNetV3-Large from, and their widths.
_MOBILENET_STAGES = {13: 160, 16: 960}


class RegionPyramid(nn.Module):
    """Stages of a backbone with a pyramid on top, and one more level for the largest anchors.

    Args:
        name: of a timm model that gives feature maps.
        stages: which of them, by their indices in timm.
        channels: of every level.
        normalised: whether the pyramid has batch normalisation.
    """

    def __init__(self, name: str, *, stages: tuple[int, ...], channels: int, normalised: bool) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=stages, pretrained=False)
        self.fpn = _pyramid(stage_widths(self.body), channels, normalised)

    def forward(self, images: Tensor) -> list[Tensor]:
        return _levels(self.fpn, self.body(images))


class MobileNetPyramid(nn.Module):
    """Torchvision's MobileNetV3-Large with its pyramid, both of whose own levels have stride 32.

    timm has this network under other names and with another epsilon; torchvision's own is used for its keys.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        network = torchvision.models.mobilenet_v3_large(weights=None, norm_layer=nn.BatchNorm2d)
        self.body = network.features
        self.fpn = _pyramid(list(_MOBILENET_STAGES.values()), channels, normalised=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        stages = []
        for index, block in enumerate(self.body):
            images = block(images)
            if index in _MOBILENET_STAGES:
                stages.append(images)
        return _levels(self.fpn, stages)


class SingleMap(nn.Module):
    """One stage of a backbone."""

    def __init__(self, name: str, *, stage: int) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=(stage,), pretrained=False)
        self.channels = stage_widths(self.body)[-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images))


def _pyramid(widths: list[int], channels: int, normalised: bool) -> FeaturePyramidNetwork:
    norm_layer = nn.BatchNorm2d if normalised else None
    return FeaturePyramidNetwork(widths, channels, extra_blocks=LastLevelMaxPool(), norm_layer=norm_layer)


def _levels(pyramid: FeaturePyramidNetwork, stages: Sequence[Tensor]) -> list[Tensor]:
    named = OrderedDict((str(index), stage) for index, stage in enumerate(stages))
    return list(pyramid(named).values())
