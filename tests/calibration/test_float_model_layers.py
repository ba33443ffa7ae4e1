"""Which nodes of a float graph count as layers that may become INT8."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from boxwright.calibration.float_model import find_layers


def gated_graph() -> onnx.ModelProto:
    """A convolution, squeeze-and-excitation behind it, and a last convolution; the batch is dynamic."""
    generator = np.random.default_rng(0)
    weights = {
        "stem_weight": generator.normal(size=(8, 3, 3, 3)),
        "squeeze_weight": generator.normal(size=(8, 8, 1, 1)),
        "excite_weight": generator.normal(size=(8, 8, 1, 1)),
        "last_weight": generator.normal(size=(8, 8, 1, 1)),
    }
    nodes = [
        helper.make_node("Conv", ["images", "stem_weight"], ["stem"], "stem_conv", pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["stem"], ["mean"], "pool"),
        helper.make_node("Conv", ["mean", "squeeze_weight"], ["squeezed"], "squeeze_conv"),
        helper.make_node("Relu", ["squeezed"], ["rectified"], "relu"),
        helper.make_node("Conv", ["rectified", "excite_weight"], ["gate"], "excite_conv"),
        helper.make_node("Mul", ["stem", "gate"], ["gated"], "mul"),
        helper.make_node("Conv", ["gated", "last_weight"], ["heads"], "last_conv"),
    ]
    graph = helper.make_graph(
        nodes,
        "gated",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 6, 5])],
        [helper.make_tensor_value_info("heads", TensorProto.FLOAT, ["batch", 8, 6, 5])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return onnx.shape_inference.infer_shapes(model)


def test_maps_of_a_single_place_are_no_layers() -> None:
    model = ir.from_proto(gated_graph())
    layers = find_layers(model, model.graph.outputs)
    assert [(layer.name, layer.is_prediction) for layer in layers] == [("stem_conv", False), ("last_conv", True)]
