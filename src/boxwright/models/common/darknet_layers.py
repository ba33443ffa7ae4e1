"""The layers of Darknet's .cfg files as PyTorch modules.

Source: the layers that the official YOLO v2 to v4 configurations use; their meaning is held to OpenCV's reader.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from boxwright.models.common.darknet_files import Section

# Darknet's leaky ReLU and the epsilon of its batch normalisation.
LEAKY_SLOPE = 0.1
BATCH_NORM_EPSILON = 1e-6
# Kernels that are turned or bent in training; none of the detectors has them.
_ASSISTED_KERNELS = ("deform", "sway", "rotate", "stretch", "stretch_sway")
# 1 GiB of float32; the largest of the authors', YOLO9000's last, has a ninth of that.
_LARGEST_KERNEL = 2**28
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "leaky": lambda: nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    "mish": lambda: nn.Mish(inplace=True),
    "swish": lambda: nn.SiLU(inplace=True),
    "logistic": nn.Sigmoid,
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": lambda: nn.ReLU6(inplace=True),
    "tanh": nn.Tanh,
}


def activation(section: Section, default: str = "linear") -> nn.Module:
    """The module of a section's `activation`."""
    name = section.text("activation", default)
    if name not in _ACTIVATIONS:
        raise section.error("one of the activations " + ", ".join(_ACTIVATIONS), repr(name))
    return _ACTIVATIONS[name]()


class Convolution(nn.Sequential):
    """`[convolutional]`: convolution, batch normalisation where asked for, activation."""

    def __init__(self, section: Section, in_channels: int) -> None:
        section.refuse("binary", "xnor", "share_index", "antialiasing", "stride_x", "stride_y", *_ASSISTED_KERNELS)
        size, groups = section.integer("size", 1), section.integer("groups", 1)
        filters, dilation = section.integer("filters", 1), section.integer("dilation", 1)
        stride = section.integer("stride", 1)
        padding = size // 2 * dilation if section.integer("pad", 0) else section.integer("padding", 0)
        if size < 1 or groups < 1 or filters < 1 or stride < 1 or in_channels % groups or filters % groups:
            raise section.error(
                f"positive size and stride, and groups that divide {in_channels} and {filters} channels",
                f"size {size}, stride {stride}, groups {groups}",
            )
        if dilation < 1 or padding < 0:
            raise section.error(
                "a positive dilation and a padding of 0 or more", f"dilation {dilation}, padding {padding}"
            )
        if (numbers := filters * (in_channels // groups) * size**2) > _LARGEST_KERNEL:
            raise section.error(f"filters of at most {_LARGEST_KERNEL} numbers together", f"{numbers}")
        normalised = bool(section.integer("batch_normalize", 0))
        layers: list[nn.Module] = [
            nn.Conv2d(
                in_channels, filters, size, stride, padding, dilation=dilation, groups=groups, bias=not normalised
            )
        ]
        if normalised:
            layers.append(nn.BatchNorm2d(filters, eps=BATCH_NORM_EPSILON))
        super().__init__(*layers, activation(section, "logistic"))
        self.out_channels = filters
        self.stride = stride


class MaxPool(nn.Module):
    """`[maxpool]`: pads `size - 1` in all, the smaller half before the image."""

    def __init__(self, section: Section) -> None:
        super().__init__()
        section.refuse("maxpool_depth", "antialiasing", "stride_x", "stride_y")
        self.stride = section.integer("stride", 1)
        self.size = section.integer("size", self.stride)
        self.padding = section.integer("padding", self.size - 1)
        if self.size < 1 or self.stride < 1 or self.padding < 0:
            raise section.error("positive size and stride", f"size {self.size}, stride {self.stride}")
        if self.padding > self.size:  # a window would hold nothing of the image
            raise section.error(f"a padding of at most its size {self.size}", f"padding {self.padding}")

    def forward(self, features: Tensor) -> Tensor:
        before, after = self.padding // 2, self.padding - self.padding // 2
        if before == after:
            return functional.max_pool2d(features, self.size, self.stride, before)
        if self.stride > 1 and all(side % self.stride == 0 for side in features.shape[-2:]) and before == 0:
            # What lies beyond the edge is never reached.
            if self.size == self.stride:
                return functional.max_pool2d(features, self.size, self.stride)
        # Repeating the edge changes no maximum of a window that holds it.
        padded = functional.pad(features, (before, after, before, after), mode="replicate")
        return functional.max_pool2d(padded, self.size, self.stride)


class Reorg(nn.Module):
    """`[reorg]`: YOLOv2's passthrough, in the channel order that Darknet's own code has.

    Darknet reads the (C, H, W) input as if it were (C / s^2, H * s, W * s) before it moves each s x s patch into the
    channels; weights are trained on that order.
    """

    def __init__(self, section: Section) -> None:
        super().__init__()
        self.stride = section.integer("stride", 1)
        if section.integer("reverse", 0) or section.integer("flatten", 0):
            raise section.error("a plain reorg", "reverse or flatten")
        if self.stride < 1:
            raise section.error("a positive stride", str(self.stride))

    def forward(self, features: Tensor) -> Tensor:
        batch, channels, height, width = features.shape
        stride = self.stride
        planes = channels // stride**2
        patches = features.reshape(batch, planes, height, stride, width, stride)
        moved = patches.permute(0, 3, 5, 1, 2, 4)  # (B, s, s, C / s^2, H, W)
        return moved.reshape(batch, channels * stride**2, height // stride, width // stride)


class ChannelGroup(nn.Module):
    """`[route]` with `groups`: one of the equal parts of the channels of each input, all joined."""

    def __init__(self, groups: int, group_id: int) -> None:
        super().__init__()
        self.groups, self.group_id = groups, group_id

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.groups > 1:
            inputs = tuple(part.chunk(self.groups, dim=1)[self.group_id] for part in inputs)
        return inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)


class Sum(nn.Module):
    """`[shortcut]`: the sum of its inputs, activated."""

    def __init__(self, section: Section) -> None:
        super().__init__()
        self.activation = activation(section)

    def forward(self, *inputs: Tensor) -> Tensor:
        total = inputs[0]
        for other in inputs[1:]:
            total = total + other
        activated: Tensor = self.activation(total)
        return activated


class Product(nn.Module):
    """`[sam]` and `[scale_channels]`: the product of two inputs, the smaller one broadcast, activated."""

    def __init__(self, section: Section) -> None:
        super().__init__()
        self.activation = activation(section)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        activated: Tensor = self.activation(first * second)
        return activated


class Upsample(nn.Module):
    """`[upsample]`: every position repeated."""

    def __init__(self, section: Section) -> None:
        super().__init__()
        section.refuse("reverse")
        self.stride = section.integer("stride", 2)
        if self.stride < 1:  # Darknet reads a negative one as a step down
            raise section.error("a positive stride", str(self.stride))
        self.scale = section.number("scale", 1.0)

    def forward(self, features: Tensor) -> Tensor:
        larger = functional.interpolate(features, scale_factor=float(self.stride), mode="nearest")
        return larger if self.scale == 1.0 else larger * self.scale
