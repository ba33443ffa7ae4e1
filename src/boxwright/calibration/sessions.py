"""Running models that exist in memory alone, with more outputs than their files have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray
from boxwright.core.errors import MissingDependencyError

if TYPE_CHECKING:
    import onnxruntime

Tensors = dict[str, NDArray[Any]]
_SEVERITY_ERROR = 3


def with_outputs(proto: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The model with these tensors as its outputs; inputs among them are left out."""
    model = ir.from_proto(proto)
    computed = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.clear()
    for name in names:
        if name in computed:
            value = computed[name]
            value.dtype = value.dtype or ir.DataType.FLOAT
            model.graph.outputs.append(value)
    return ir.to_proto(model)


def open_session(
    model: onnx.ModelProto | bytes, *, num_threads: int = 0, optimize: bool = True
) -> onnxruntime.InferenceSession:
    """Open a model in ONNX Runtime on the CPU.

    Args:
        model: the model, or its bytes.
        num_threads: 0 leaves it to the engine.
        optimize: whether the graph may be changed, e.g. Q/DQ nodes fused to integer ones.

    Raises:
        MissingDependencyError: where ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError("onnxruntime", extra="int8", needed_for="calibrate") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _SEVERITY_ERROR
    options.intra_op_num_threads = num_threads
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def channels_first(array: FloatArray, channel_axis: int | None) -> FloatArray:
    """(C, n) of an activation tensor: its channels, and all else behind them; one channel where no axis is given."""
    if channel_axis is None:
        return np.ascontiguousarray(array).reshape(1, -1)
    moved = np.moveaxis(array, channel_axis, 0)
    return np.ascontiguousarray(moved.reshape(moved.shape[0], -1))
