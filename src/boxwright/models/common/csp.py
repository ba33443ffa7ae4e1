"""CSP layers and the path aggregation neck made of them, which YOLOv5 and YOLOX share.

Sources: Wang et al., CSPNet, CVPR Workshops 2020; Liu et al., PANet, CVPR 2018.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.models.common.layers import ConvBnAct, DepthwiseSeparable

MakeConv = Callable[[int, int, int, int], nn.Module]


def make_conv_factory(*, depthwise: bool = False) -> MakeConv:
    """A factory of k x k convolutions: (in_channels, out_channels, kernel_size, stride) -> module."""

    def make(in_channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Module:
        block = DepthwiseSeparable if depthwise else ConvBnAct
        return block(in_channels, out_channels, kernel_size, stride=stride)

    return make


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolution, with a shortcut where asked for."""

    def __init__(self, channels: int, *, shortcut: bool, make_conv: MakeConv) -> None:
        super().__init__()
        self.conv1 = ConvBnAct(channels, channels, 1)
        self.conv2 = make_conv(channels, channels, 3, 1)
        self.shortcut = shortcut

    def forward(self, features: Tensor) -> Tensor:
        refined: Tensor = self.conv2(self.conv1(features))
        return features + refined if self.shortcut else refined


class CspLayer(nn.Module):
    """Half of the channels pass through bottlenecks, half around them. Source: Wang et al., CSPNet, 2020."""

    def __init__(
        self, in_channels: int, out_channels: int, *, num_blocks: int, shortcut: bool, make_conv: MakeConv
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.conv1 = ConvBnAct(in_channels, hidden, 1)
        self.conv2 = ConvBnAct(in_channels, hidden, 1)
        self.conv3 = ConvBnAct(2 * hidden, out_channels, 1)
        self.blocks = nn.Sequential(
            *(Bottleneck(hidden, shortcut=shortcut, make_conv=make_conv) for _ in range(num_blocks))
        )

    def forward(self, features: Tensor) -> Tensor:
        through, around = self.blocks(self.conv1(features)), self.conv2(features)
        merged: Tensor = self.conv3(torch.cat([through, around], dim=1))
        return merged


class PathAggregation(nn.Module):
    """The neck: a top-down and a bottom-up path between the levels.

    Args:
        channels: of the levels at strides 8, 16 and 32, in and out.
        num_blocks: bottlenecks of each CSP layer.
        make_conv: of the 3x3 convolutions.

    Source: Liu et al., PANet, CVPR 2018, sec. 3.2.
    """

    def __init__(self, channels: tuple[int, ...], *, num_blocks: int, make_conv: MakeConv) -> None:
        super().__init__()
        p3, p4, p5 = channels

        def csp(in_channels: int, out_channels: int) -> CspLayer:
            return CspLayer(in_channels, out_channels, num_blocks=num_blocks, shortcut=False, make_conv=make_conv)

        self.lateral_p5 = ConvBnAct(p5, p4, 1)
        self.top_down_p4 = csp(2 * p4, p4)
        self.lateral_p4 = ConvBnAct(p4, p3, 1)
        self.top_down_p3 = csp(2 * p3, p3)
        self.downsample_p3 = make_conv(p3, p3, 3, 2)
        self.bottom_up_p4 = csp(2 * p3, p4)
        self.downsample_p4 = make_conv(p4, p4, 3, 2)
        self.bottom_up_p5 = csp(2 * p4, p5)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lateral_p5 = self.lateral_p5(p5)
        lateral_p4 = self.lateral_p4(self.top_down_p4(torch.cat([_upsample(lateral_p5), p4], dim=1)))
        out_p3 = self.top_down_p3(torch.cat([_upsample(lateral_p4), p3], dim=1))
        out_p4 = self.bottom_up_p4(torch.cat([self.downsample_p3(out_p3), lateral_p4], dim=1))
        out_p5 = self.bottom_up_p5(torch.cat([self.downsample_p4(out_p4), lateral_p5], dim=1))
        return out_p3, out_p4, out_p5


def _upsample(features: Tensor) -> Tensor:
    return functional.interpolate(features, scale_factor=2.0, mode="nearest")
