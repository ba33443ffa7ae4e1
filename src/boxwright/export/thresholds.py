"""The thresholds of a graph that gives detections: inputs that have defaults, so that they may be left out.

Engines and servers that make constants of such inputs, or do not feed them, go by the defaults alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from boxwright.core.errors import UnsupportedError
from boxwright.export.decode_nms.function import THRESHOLD_NAMES


def threshold_defaults(model: ir.Model) -> dict[str, float]:
    """The defaults that a graph has, by name."""
    tensors = {name: model.graph.initializers[name].const_value for name in _among(model)}
    numbers = {name: tensor.numpy().reshape(-1)[0] for name, tensor in tensors.items() if tensor is not None}
    return {name: float(str(number)) for name, number in numbers.items()}  # 0.7, not 0.699999988


def set_iou_default(model: ir.Model, iou_threshold: float) -> None:
    """Make the model's own IoU threshold the default, for what will run with no other; changes the graph."""
    name = THRESHOLD_NAMES[1]
    if name in _among(model):
        value = model.graph.initializers[name]
        shape = () if value.const_value is None else tuple(value.const_value.shape.numpy())
        value.const_value = ir.tensor(np.full(shape, iou_threshold, dtype=np.float32), name=name)


def make_constant(model: ir.Model, source: str) -> None:
    """Make constants of the thresholds: they are no inputs any more; changes the graph.

    Raises:
        UnsupportedError: where one has no default.
    """
    inputs = {str(value.name): value for value in model.graph.inputs}
    for name in THRESHOLD_NAMES:
        if name not in inputs:
            continue
        if name not in model.graph.initializers:
            raise UnsupportedError(
                f"--fixed-thresholds of {source}",
                expected=f"a graph whose input {name} has a default",
                got="one without",
                fix="export it again with Boxwright",
            )
        model.graph.inputs.remove(inputs[name])


def _among(model: ir.Model) -> list[str]:
    return [name for name in THRESHOLD_NAMES if name in model.graph.initializers]
