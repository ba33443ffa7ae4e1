"""Which layers of a .cfg are its backbone, and these layers as a module of their own.

A .cfg does not say where its backbone ends. It is taken to end, among the layers before the first head, upsampling, way
back to a finer map or pyramid of poolings, and of those at the coarsest stride,

- where there are shortcuts or routes that join: with the last of them, and a 1x1 convolution behind a joining route;
- else with the first of the widest convolutions, and the pairs behind it that narrow it and come back to its width, up
  to one whose narrow map is read elsewhere.

That is Darknet-19 in YOLOv2, Darknet-53 in YOLOv3 and CSPDarknet53 in YOLOv4.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from boxwright.models.common.darknet_layers import ChannelGroup, Convolution, MaxPool, Sum, Upsample
from boxwright.models.common.darknet_network import DarknetNetwork


class DarknetBackbone(nn.Module):
    """The first layers of a network, which stay its own; images (B, 3, H, W) -> the map of the last of them."""

    def __init__(self, network: DarknetNetwork) -> None:
        super().__init__()
        end = backbone_length(network)
        self.layers = nn.ModuleList(network.layers[:end])
        self._reads = network.reads[:end]

    def forward(self, images: Tensor) -> Tensor:
        outputs = {-1: images}
        for index, (layer, reads) in enumerate(zip(self.layers, self._reads, strict=True)):
            outputs[index] = layer(*(outputs[read] for read in reads))
        return outputs[len(self.layers) - 1]


def backbone_length(network: DarknetNetwork) -> int:
    """How many of the first layers are the backbone; 0 where none are."""
    trunk = range(_trunk_length(network))
    coarsest = max((_stride(network, index) for index in trunk), default=0.0)
    last_stage = [index for index in trunk if _stride(network, index) == coarsest]
    joins = [index for index in last_stage if _joins(network, index)]
    if joins:
        end = joins[-1] + 1
        is_route = isinstance(network.layers[joins[-1]], ChannelGroup)
        return end + 1 if is_route and end in trunk and _is_pointwise(network.layers[end]) else end
    convolutions = [index for index in last_stage if isinstance(network.layers[index], Convolution)]
    if not convolutions:
        return 0
    widest = max(convolutions, key=lambda index: network.shapes[index].channels)  # the first of the equally wide
    end = widest + 1
    while end + 1 in trunk and _is_narrow_pair(network, end, network.shapes[widest].channels):
        end += 2
    return end


def _trunk_length(network: DarknetNetwork) -> int:
    heads = {head.layer for head in network.heads}
    coarsest = 0.0
    for index, (layer, reads) in enumerate(zip(network.layers, network.reads, strict=True)):
        is_pyramid = len(reads) > 1 and any(isinstance(network.layers[read], MaxPool) for read in reads)
        goes_back = isinstance(layer, ChannelGroup) and network.shapes[index].stride < coarsest
        if index in heads or isinstance(layer, Upsample) or is_pyramid or goes_back:
            return index
        coarsest = max(coarsest, _stride(network, index))
    return len(network.layers)


def _stride(network: DarknetNetwork, index: int) -> float:
    stride = network.shapes[index].stride
    return stride if math.isfinite(stride) else 0.0


def _joins(network: DarknetNetwork, index: int) -> bool:
    return isinstance(network.layers[index], (Sum, ChannelGroup)) and len(network.reads[index]) > 1


def _is_pointwise(layer: nn.Module) -> bool:
    return isinstance(layer, Convolution) and isinstance(layer[0], nn.Conv2d) and layer[0].kernel_size == (1, 1)


def _is_narrow_pair(network: DarknetNetwork, index: int, width: int) -> bool:
    is_pair = _is_pointwise(network.layers[index]) and isinstance(network.layers[index + 1], Convolution)
    readers = sum(index in reads for reads in network.reads)
    return is_pair and readers == 1 and network.shapes[index + 1].channels == width
