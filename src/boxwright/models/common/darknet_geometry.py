"""Whether the maps of a .cfg have the sizes that its strides say."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from boxwright.core.errors import CheckpointError
from boxwright.models.common.darknet_files import Section
from boxwright.models.common.darknet_network import DarknetNetwork

_LARGEST_STRIDE = 2**16


def check_grids(sections: list[Section]) -> None:
    """Run the layers once without numbers, and hold the grid of each head to the size of the image and its stride.

    A kernel without padding, or an even one, moves the cells away from where the boxes are decoded.

    Args:
        sections: of the .cfg, `[net]` first.

    Raises:
        CheckpointError: naming the section, where a layer cannot read the maps before it, or a head's grid is another.
    """
    with torch.device("meta"):  # neither memory nor computing
        network = DarknetNetwork(sections).eval()
        if network.size_divisor > _LARGEST_STRIDE:
            raise sections[0].error(f"strides of at most {_LARGEST_STRIDE} in all", f"{network.size_divisor}")
        # An even and an odd number of the coarsest cells, so that both kinds are seen.
        image = torch.empty(1, 3, 16 * network.size_divisor, 17 * network.size_divisor)
    outputs: dict[int, Tensor] = {-1: image}
    first_misfit: CheckpointError | None = None
    for index in sorted(network.needed):
        section = sections[index + 1]
        try:
            with torch.no_grad():
                output = network.layers[index](*(outputs[read] for read in network.reads[index]))
        except (RuntimeError, ValueError, OverflowError, MemoryError) as error:
            sizes = ", ".join("x".join(map(str, outputs[read].shape[-2:])) for read in network.reads[index])
            raise section.error("maps that the layer can read", f"maps of {sizes} pixels") from error
        outputs[index] = output
        stride = network.shapes[index].stride
        is_head = any(head.layer == index for head in network.heads)
        if math.isinf(stride):
            if is_head:
                raise section.error("a map with a grid before it", "one value a channel, of an [avgpool]")
        elif any(cells * stride != side for cells, side in zip(output.shape[-2:], image.shape[-2:], strict=True)):
            first_misfit = first_misfit or _misfit(section, output, image, stride)
            if is_head:
                raise first_misfit


def _misfit(section: Section, output: Tensor, image: Tensor, stride: float) -> CheckpointError:
    (rows, columns), (height, width) = output.shape[-2:], image.shape[-2:]
    return section.error(
        f"{height / stride:g}x{width / stride:g} cells for {height}x{width} pixels, as its stride {stride:g} says",
        f"{rows}x{columns}",
        "use odd kernels with pad=1",
    )
