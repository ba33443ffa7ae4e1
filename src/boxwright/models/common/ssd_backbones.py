"""What SSD looks at: a backbone and the ever smaller maps that it appends.

Sources: Liu et al., SSD, ECCV 2016, sec. 2.1 and fig. 2; Sandler et al., MobileNetV2, CVPR 2018, sec. 6.2, and Howard
et al., MobileNetV3, ICCV 2019, sec. 6.3, for SSDLite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import mobilenet_v3_large

from boxwright.models.common.stage_widths import stage_widths

# The factor that conv4_3's unit vectors begin with. Source: Liu et al., ParseNet, 2015, as in SSD, sec. 3.1.
UNIT_VECTOR_SCALE = 20.0
VGG_C4_CHANNELS, VGG_FC_CHANNELS = 512, 1024
FC6_DILATION = 6
# A classifier that is thrown away at once; without this it would hold a hundred million weights.
_TINY_CLASSIFIER = 1 / 1024


class LevelBackbone(nn.Module, ABC):
    """Images to maps, the finest first.

    Attributes:
        widths: channels of each map.
    """

    widths: tuple[int, ...]

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps of images (B, 3, H, W)."""

    @abstractmethod
    def sides(self, side: int) -> list[int]:
        """Cells along one side of each map for an input of that side in pixels; below 1 where it is too small."""


class ExtraConv(NamedTuple):
    """One of VGG's appended steps: a 1x1 convolution to `hidden` and a larger one to `out` channels."""

    hidden: int
    out: int
    kernel_size: int
    stride: int
    padding: int


SSD300_EXTRAS = (
    ExtraConv(256, 512, 3, 2, 1),
    ExtraConv(128, 256, 3, 2, 1),
    ExtraConv(128, 256, 3, 1, 0),
    ExtraConv(128, 256, 3, 1, 0),
)
SSD512_EXTRAS = (
    ExtraConv(256, 512, 3, 2, 1),
    *(ExtraConv(128, 256, 3, 2, 1) for _ in range(3)),
    ExtraConv(128, 256, 4, 1, 1),
)


class VggBackbone(LevelBackbone):
    """VGG16 to conv4_3 and conv5_3, its first two fully connected layers as convolutions, and the appended steps."""

    def __init__(self, extras: Sequence[ExtraConv]) -> None:
        super().__init__()
        self.body = timm.create_model(
            "vgg16", features_only=True, out_indices=(3, 4), pretrained=False, mlp_ratio=_TINY_CLASSIFIER
        )
        # The third pooling rounds up, so that 300 pixels become 38 cells and not 37.
        cast(Any, self.body)["features_16"].ceil_mode = True
        self.scale_weight = nn.Parameter(torch.full((VGG_C4_CHANNELS,), UNIT_VECTOR_SCALE))
        self.fc = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(VGG_C4_CHANNELS, VGG_FC_CHANNELS, 3, padding=FC6_DILATION, dilation=FC6_DILATION),
            nn.ReLU(inplace=True),
            nn.Conv2d(VGG_FC_CHANNELS, VGG_FC_CHANNELS, 1),
            nn.ReLU(inplace=True),
        )
        self.extra = nn.ModuleList()
        channels = VGG_FC_CHANNELS
        for step in extras:
            self.extra.append(
                nn.Sequential(
                    nn.Conv2d(channels, step.hidden, 1),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(step.hidden, step.out, step.kernel_size, step.stride, step.padding),
                    nn.ReLU(inplace=True),
                )
            )
            channels = step.out
        self.steps = tuple(extras)
        self.widths = (VGG_C4_CHANNELS, VGG_FC_CHANNELS, *(step.out for step in extras))
        init_xavier(self.fc)
        init_xavier(self.extra)

    def forward(self, images: Tensor) -> list[Tensor]:
        c4, c5 = self.body(images)
        levels = [functional.normalize(c4, dim=1) * self.scale_weight[None, :, None, None], self.fc(c5)]
        for step in self.extra:
            levels.append(step(levels[-1]))
        return levels

    def sides(self, side: int) -> list[int]:
        c4 = -(-(side // 4) // 2)
        sides = [c4, c4 // 2]
        for step in self.steps:
            sides.append((sides[-1] + 2 * step.padding - step.kernel_size) // step.stride + 1)
        return sides


def init_xavier(module: nn.Module) -> None:
    """Glorot's initial weights for every convolution, and no bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_normal(module: nn.Module) -> None:
    """SSDLite's small initial weights for every convolution, and no bias."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.03)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


batch_norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03)


def conv_norm_relu6(in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int) -> nn.Sequential:
    """A convolution of "same" padding, batch normalisation and ReLU6."""
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    return nn.Sequential(convolution, batch_norm(out_channels), nn.ReLU6(inplace=True))


def _halving_steps(in_channels: int, widths: Sequence[int]) -> nn.ModuleList:
    """SSDLite's appended steps, each of half the size: to half the width, depthwise with stride 2, to the width."""
    steps = nn.ModuleList()
    for width in widths:
        hidden = width // 2
        steps.append(
            nn.Sequential(
                conv_norm_relu6(in_channels, hidden, 1, 1, 1),
                conv_norm_relu6(hidden, hidden, 3, 2, hidden),
                conv_norm_relu6(hidden, width, 1, 1, 1),
            )
        )
        in_channels = width
    init_normal(steps)
    return steps


def _halve(side: int) -> int:
    """What a 3x3 convolution of stride 2 and padding 1 leaves."""
    return (side + 1) // 2


def _is_halving(block: nn.Module) -> bool:
    return any(isinstance(layer, nn.Conv2d) and layer.stride == (2, 2) for layer in block.modules())


class MobileNetBackbone(LevelBackbone):
    """MobileNetV3-Large with the reduced tail, tapped where stride 16 is expanded and at its end; and four steps more.

    Torchvision's, since timm has neither the reduced tail nor a way to tap a block between its convolutions.
    """

    EXTRA_WIDTHS = (512, 256, 256, 128)

    def __init__(self) -> None:
        super().__init__()
        blocks = list(mobilenet_v3_large(weights=None, reduced_tail=True, norm_layer=batch_norm).features)
        # The last block that halves the map: its expansion still sees stride 16.
        last = max(index for index, block in enumerate(blocks) if _is_halving(block))
        layers = cast(Any, blocks[last]).block
        expansion = layers[0]
        self.features = nn.Sequential(
            nn.Sequential(*blocks[:last], expansion),
            nn.Sequential(layers[1:], *blocks[last + 1 :]),
        )
        init_normal(self.features)
        c4, c5 = cast(Any, expansion).out_channels, cast(Any, blocks[-1]).out_channels
        self.extra = _halving_steps(c5, self.EXTRA_WIDTHS)
        self.widths = (c4, c5, *self.EXTRA_WIDTHS)

    def forward(self, images: Tensor) -> list[Tensor]:
        levels = []
        features = images
        for step in (*self.features, *self.extra):
            features = step(features)
            levels.append(features)
        return levels

    def sides(self, side: int) -> list[int]:
        c4 = _halve(_halve(_halve(_halve(side))))
        sides = [c4]
        for _ in self.widths[1:]:
            sides.append(_halve(sides[-1]))
        return sides


class TimmBackbone(LevelBackbone):
    """The maps of stride 8, 16 and 32 of a timm model, and steps that halve the last one.

    Args:
        name: of the model.
        options: of the model.
        extra_widths: channels of each step.
    """

    def __init__(self, name: str, options: Mapping[str, Any], extra_widths: Sequence[int]) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=(2, 3, 4), pretrained=False, **options)
        widths = stage_widths(self.body)
        self.extra = _halving_steps(widths[-1], extra_widths)
        self.widths = (*widths, *extra_widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        levels = list(self.body(images))
        for step in self.extra:
            levels.append(step(levels[-1]))
        return levels

    def sides(self, side: int) -> list[int]:
        sides = [-(-side // stride) for stride in (8, 16, 32)]
        for _ in self.extra:
            sides.append(_halve(sides[-1]))
        return sides
