"""Layers that several detectors share."""

from __future__ import annotations

from torch import Tensor, nn


class ConvBnAct(nn.Module):
    """Convolution without bias, batch normalisation, activation; "same" padding for odd kernels.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd.
        stride: of the convolution.
        groups: of the convolution.
        activation: SiLU where None.
        bn_eps: of the batch normalisation.
        bn_momentum: likewise.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.03,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=bn_eps, momentum=bn_momentum)
        self.act = nn.SiLU(inplace=True) if activation is None else activation

    def forward(self, features: Tensor) -> Tensor:
        activated: Tensor = self.act(self.bn(self.conv(features)))
        return activated


class DepthwiseSeparable(nn.Module):
    """A depthwise and then a pointwise convolution, each with its own normalisation and activation.

    Source: Howard et al., MobileNets, 2017, sec. 3.1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = ConvBnAct(in_channels, in_channels, kernel_size, stride=stride, groups=in_channels)
        self.pointwise = ConvBnAct(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        mixed: Tensor = self.pointwise(self.depthwise(features))
        return mixed
