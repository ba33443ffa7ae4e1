"""A Darknet .cfg as an `nn.Module`: the layers in order, each with the outputs it reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from boxwright.core.errors import CheckpointError
from boxwright.models.common.darknet_files import Section
from boxwright.models.common.darknet_layers import ChannelGroup, Convolution, MaxPool, Product, Reorg, Sum, Upsample

HEAD_SECTIONS = ("yolo", "region")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a layer puts out: channels, and pixels of the input a position."""

    channels: int
    stride: float


@dataclass(frozen=True, kw_only=True)
class Head:
    """A `[yolo]` or `[region]` section and the output that it reads.

    Attributes:
        section: as written.
        layer: index of the layer whose output it decodes.
        stride: pixels a cell.
    """

    section: Section
    layer: int
    stride: float


class DarknetNetwork(nn.Module):
    """The layers of a .cfg; its forward gives the inputs of the heads, in their order.

    Args:
        sections: of the .cfg, `[net]` first.

    Raises:
        CheckpointError: where a section is unknown, or reads a layer that is not before it.
    """

    def __init__(self, sections: list[Section]) -> None:
        super().__init__()
        self.in_channels = sections[0].integer("channels", 3)
        if self.in_channels != 3:
            raise sections[0].error("channels=3, for colour images", f"channels={self.in_channels}")
        self.layers = nn.ModuleList()
        self.reads: list[tuple[int, ...]] = []  # indices of the layers that each one reads; -1 is the image
        self.heads: list[Head] = []
        self.shapes: list[Shape] = []
        for section in sections[1:]:
            self._append(section)
        if not self.heads:
            raise CheckpointError(
                sections[0].source,
                expected="a detector, with a [yolo] or [region] section",
                got="none",
                fix="give the .cfg of a detector",
            )
        self._drop_what_no_head_needs()

    @property
    def needed(self) -> frozenset[int]:
        """Indices of the layers that some head reads, by way of others or not."""
        return self._needed

    @property
    def size_divisor(self) -> int:
        """The largest stride in the network."""
        return int(max((shape.stride for shape in self.shapes if 1 <= shape.stride < math.inf), default=1))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Inputs of the heads (B, A * (5 + C), H, W) for images (B, 3, H, W)."""
        outputs: dict[int, Tensor] = {-1: images}
        for index, (layer, reads) in enumerate(zip(self.layers, self.reads, strict=True)):
            if index in self._needed:
                outputs[index] = layer(*(outputs[read] for read in reads))
        return [outputs[head.layer] for head in self.heads]

    def load(self, numbers: NDArray[np.float32], source: str) -> None:
        """Fill in the numbers of a .weights file.

        Raises:
            CheckpointError: where there are more or fewer than the layers hold.
        """
        tensors = [tensor for layer in self.layers for tensor in _stored_tensors(layer)]
        wanted = sum(tensor.numel() for tensor in tensors)
        if wanted != len(numbers):
            raise CheckpointError(
                source,
                expected=f"{wanted} numbers, as its .cfg asks",
                got=f"{len(numbers)}, {abs(len(numbers) - wanted)} too {'many' if len(numbers) > wanted else 'few'}",
                fix="give the .cfg and the .weights that belong together",
            )
        position = 0
        for tensor in tensors:
            values = numbers[position : position + tensor.numel()].reshape(tuple(tensor.shape))
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(values.copy()))
            position += tensor.numel()

    def _append(self, section: Section) -> None:
        index = len(self.layers)
        if section.name in HEAD_SECTIONS:
            layer: nn.Module = nn.Identity()
            reads: tuple[int, ...] = (index - 1,)
            shape = self._shape(index - 1)
            self.heads.append(Head(section=section, layer=index, stride=shape.stride))
        elif section.name in _BUILDERS:
            layer, reads, shape = _BUILDERS[section.name](self, section, index)
        else:
            known = ", ".join([*_BUILDERS, *HEAD_SECTIONS])
            raise section.error(f"one of the sections {known}", f"[{section.name}]", "use a detector of YOLO v2 to v4")
        self.layers.append(layer)
        self.reads.append(reads)
        self.shapes.append(shape)

    def _shape(self, index: int) -> Shape:
        return Shape(channels=self.in_channels, stride=1.0) if index == -1 else self.shapes[index]

    def _resolve(self, section: Section, index: int, references: tuple[int, ...]) -> tuple[int, ...]:
        """Absolute indices of the layers that a section names, each before it."""
        if not references:
            raise section.error("at least one layer to read", "none")
        resolved = tuple(index + reference if reference < 0 else reference for reference in references)
        for reference, target in zip(references, resolved, strict=True):
            if not 0 <= target < index:
                raise section.error(
                    f"a layer before this one (0 to {index - 1})", f"{reference}, which is layer {target}"
                )
        return resolved

    def _drop_what_no_head_needs(self) -> None:
        needed: set[int] = set()
        waiting = [head.layer for head in self.heads]
        while waiting:
            index = waiting.pop()
            if index >= 0 and index not in needed:
                needed.add(index)
                waiting.extend(self.reads[index])
        self._needed = frozenset(needed)


_Built = tuple[nn.Module, tuple[int, ...], Shape]


def _convolutional(network: DarknetNetwork, section: Section, index: int) -> _Built:
    before = network._shape(index - 1)
    layer = Convolution(section, before.channels)
    return layer, (index - 1,), Shape(channels=layer.out_channels, stride=before.stride * layer.stride)


def _maxpool(network: DarknetNetwork, section: Section, index: int) -> _Built:
    before = network._shape(index - 1)
    layer = MaxPool(section)
    return layer, (index - 1,), Shape(channels=before.channels, stride=before.stride * layer.stride)


def _avgpool(network: DarknetNetwork, section: Section, index: int) -> _Built:
    before = network._shape(index - 1)
    return nn.AdaptiveAvgPool2d(1), (index - 1,), Shape(channels=before.channels, stride=float("inf"))


def _dropout(network: DarknetNetwork, section: Section, index: int) -> _Built:
    probability = section.number("probability", 0.5)
    if not 0 <= probability < 1:
        raise section.error("a probability in [0, 1)", str(probability))
    return nn.Dropout(probability), (index - 1,), network._shape(index - 1)


def _upsample(network: DarknetNetwork, section: Section, index: int) -> _Built:
    before = network._shape(index - 1)
    layer = Upsample(section)
    return layer, (index - 1,), Shape(channels=before.channels, stride=before.stride / layer.stride)


def _reorg(network: DarknetNetwork, section: Section, index: int) -> _Built:
    before = network._shape(index - 1)
    layer = Reorg(section)
    if before.channels % layer.stride**2:
        raise section.error(f"channels that are a multiple of {layer.stride**2}", str(before.channels))
    shape = Shape(channels=before.channels * layer.stride**2, stride=before.stride * layer.stride)
    return layer, (index - 1,), shape


def _route(network: DarknetNetwork, section: Section, index: int) -> _Built:
    reads = network._resolve(section, index, section.integers("layers"))
    groups, group_id = section.integer("groups", 1), section.integer("group_id", 0)
    shapes = [network._shape(read) for read in reads]
    if groups < 1 or not 0 <= group_id < groups or any(shape.channels % groups for shape in shapes):
        raise section.error(
            f"groups that divide {[shape.channels for shape in shapes]} channels and a group_id below them",
            f"groups {groups}, group_id {group_id}",
        )
    _require_one_stride(section, shapes)
    channels = sum(shape.channels // groups for shape in shapes)
    return ChannelGroup(groups, group_id), reads, Shape(channels=channels, stride=shapes[0].stride)


def _shortcut(network: DarknetNetwork, section: Section, index: int) -> _Built:
    others = network._resolve(section, index, section.integers("from"))
    if section.text("weights_type", "none") != "none":
        raise section.error("a shortcut without weights", section.options["weights_type"])
    reads = (index - 1, *others)
    shapes = [network._shape(read) for read in reads]
    _require_one_stride(section, shapes)
    if len({shape.channels for shape in shapes}) > 1:
        raise section.error("layers of the same width", f"{[shape.channels for shape in shapes]} channels")
    return Sum(section), reads, shapes[0]


def _product(network: DarknetNetwork, section: Section, index: int) -> _Built:
    others = network._resolve(section, index, section.integers("from"))
    shapes = [network._shape(index - 1), network._shape(others[0])]
    if shapes[0].channels != shapes[1].channels:
        raise section.error("layers of the same width", f"{[shape.channels for shape in shapes]} channels")
    # One value a channel scales a map of any size.
    if section.name == "sam" or all(math.isfinite(shape.stride) for shape in shapes):
        _require_one_stride(section, shapes)
    return Product(section), (index - 1, others[0]), min(shapes, key=lambda shape: shape.stride)


def _require_one_stride(section: Section, shapes: list[Shape]) -> None:
    strides = {shape.stride for shape in shapes}
    if len(strides) > 1:
        raise section.error("layers of the same resolution", f"strides {sorted(strides)}")


_BUILDERS: dict[str, Callable[[DarknetNetwork, Section, int], _Built]] = {
    "convolutional": _convolutional,
    "maxpool": _maxpool,
    "avgpool": _avgpool,
    "dropout": _dropout,
    "upsample": _upsample,
    "reorg": _reorg,
    "route": _route,
    "shortcut": _shortcut,
    "sam": _product,
    "scale_channels": _product,
}


def _stored_tensors(layer: nn.Module) -> list[Tensor]:
    """The tensors that a .weights file holds for a layer, in its order."""
    if not isinstance(layer, Convolution):
        return []
    convolution = layer[0]
    assert isinstance(convolution, nn.Conv2d)
    normalisation = layer[1]
    if isinstance(normalisation, nn.BatchNorm2d):
        assert normalisation.running_mean is not None and normalisation.running_var is not None
        return [
            normalisation.bias,
            normalisation.weight,
            normalisation.running_mean,
            normalisation.running_var,
            convolution.weight,
        ]
    assert convolution.bias is not None
    return [convolution.bias, convolution.weight]
