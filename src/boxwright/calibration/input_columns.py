"""What a layer multiplies its weights with: the neighbourhoods of a few output positions, drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from boxwright.calibration.float_model import Layer
from boxwright.core.boxes import FloatArray


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a convolution walks over its input; a product with a matrix has the kernel (1, 1).

    Attributes:
        kernel_hw: rows and columns.
        stride_hw: in input pixels.
        pads: top, left, bottom, right.
        dilation_hw: in input pixels.
    """

    kernel_hw: tuple[int, int] = (1, 1)
    stride_hw: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation_hw: tuple[int, int] = (1, 1)

    @property
    def num_taps(self) -> int:
        """Of the kernel."""
        return self.kernel_hw[0] * self.kernel_hw[1]


def geometry_of(node: ir.Node, layer: Layer) -> Geometry | None:
    """How a layer walks over its input; None for convolutions that are not two-dimensional or pad by rule."""
    if layer.kind == "matmul":
        return Geometry()
    if layer.weight.ndim != 4 or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    strides = node.attributes.get_ints("strides", (1, 1))
    pads = node.attributes.get_ints("pads", (0, 0, 0, 0))
    dilations = node.attributes.get_ints("dilations", (1, 1))
    return Geometry(
        kernel_hw=(layer.weight.shape[2], layer.weight.shape[3]),
        stride_hw=(strides[0], strides[1]),
        pads=(pads[0], pads[1], pads[2], pads[3]),
        dilation_hw=(dilations[0], dilations[1]),
    )


def sample_columns(activation: FloatArray, geometry: Geometry, count: int, random: np.random.Generator) -> FloatArray:
    """Input neighbourhoods of output positions drawn at random, borders filled with zeros.

    Args:
        activation: (C, H, W) of a convolution, (C, n) of a product.
        geometry: of the layer.
        count: of the positions.
        random: to draw with.

    Returns:
        (C, taps, count), the taps row by row.
    """
    if activation.ndim == 2:
        return np.ascontiguousarray(activation[:, random.integers(0, activation.shape[1], count)])[:, None, :]
    top, left, bottom, right = geometry.pads
    dilation_y, dilation_x = geometry.dilation_hw
    height = activation.shape[1] + top + bottom - (geometry.kernel_hw[0] - 1) * dilation_y
    width = activation.shape[2] + left + right - (geometry.kernel_hw[1] - 1) * dilation_x
    rows = random.integers(0, -(-height // geometry.stride_hw[0]), count) * geometry.stride_hw[0] - top
    columns = random.integers(0, -(-width // geometry.stride_hw[1]), count) * geometry.stride_hw[1] - left
    taps = np.empty((len(activation), geometry.num_taps, count), dtype=np.float32)
    for tap in range(geometry.num_taps):
        y = rows + tap // geometry.kernel_hw[1] * dilation_y
        x = columns + tap % geometry.kernel_hw[1] * dilation_x
        inside = (y >= 0) & (y < activation.shape[1]) & (x >= 0) & (x < activation.shape[2])
        values = activation[:, y.clip(0, activation.shape[1] - 1), x.clip(0, activation.shape[2] - 1)]
        taps[:, tap] = np.where(inside, values, np.float32(0))
    return taps
