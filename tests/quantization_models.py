"""A small network with everything that lies between convolutions, with random weights, as a float model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from boxwright.calibration.float_model import FloatModel, load_float_model
from boxwright.core.manifest import METADATA_KEY
from models_for_tests import CLASS_NAMES, COLUMNS, HEIGHT, NUM_CELLS, ROWS, WIDTH, colour_cells_manifest

# In the order of the graph; the last two predict.
LAYERS = ("stem", "down", "left", "right", "deep", "thin", "wide", "boxes", "classes")
_CHANNELS = 12


class _Graph:
    """Nodes and constants as they are added."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, array: NDArray[np.generic]) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op_type: str, inputs: list[str], name: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def conv(
        self, x: str, name: str, *, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, group: int = 1
    ) -> str:
        fan_in = inputs // group * kernel * kernel
        weight = self.random.normal(0, 1.5 / np.sqrt(fan_in), (outputs, inputs // group, kernel, kernel))
        bias = self.random.normal(0, 0.3, outputs)
        names = [
            x,
            self.constant(f"{name}.weight", weight.astype(np.float32)),
            self.constant(f"{name}.bias", bias.astype(np.float32)),
        ]
        pads = [kernel // 2] * 4
        return self.add("Conv", names, name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads, group=group)

    def silu(self, x: str, name: str) -> str:
        return self.add("Mul", [x, self.add("Sigmoid", [x], f"{name}_sigmoid")], f"{name}_silu")


def network(seed: int = 0) -> onnx.ModelProto:
    """The model: SiLU, ReLU, a sum, pooling, upsampling, a concatenation, a depthwise layer and two predictions."""
    graph = _Graph(seed)
    c = _CHANNELS
    x = graph.silu(graph.conv("images", "stem", inputs=3, outputs=c, stride=4), "stem")
    down = graph.add("Relu", [graph.conv(x, "down", inputs=c, outputs=c, stride=2)], "down_relu")  # (B, C, 6, 8)
    left = graph.silu(graph.conv(down, "left", inputs=c, outputs=c, kernel=1), "left")
    right = graph.conv(left, "right", inputs=c, outputs=c)
    total = graph.add("Add", [down, right], "sum")
    pooled = graph.add("MaxPool", [total], "pool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    deep = graph.add("LeakyRelu", [graph.conv(pooled, "deep", inputs=c, outputs=c, kernel=1)], "deep_leaky", alpha=0.1)
    scales = graph.constant("scales", np.array([1, 1, 2, 2], np.float32))
    up = graph.add("Resize", [deep, "", scales], "up", mode="nearest", coordinate_transformation_mode="asymmetric")
    both = graph.add("Concat", [up, total], "both", axis=1)
    thin = graph.silu(graph.conv(both, "thin", inputs=2 * c, outputs=2 * c, group=2 * c), "thin")
    wide = graph.silu(graph.conv(thin, "wide", inputs=2 * c, outputs=c, kernel=1), "wide")
    for head, name, width in (("box_regression", "boxes", 4), ("class_logits", "classes", len(CLASS_NAMES))):
        maps = graph.conv(wide, name, inputs=c, outputs=width, kernel=1)
        flat = graph.add(
            "Reshape", [maps, graph.constant(f"{name}_shape", np.array([0, width, -1], np.int64))], f"{name}_flat"
        )
        graph.nodes.append(helper.make_node("Transpose", [flat], [head], name=f"{name}_turned", perm=[0, 2, 1]))
    assert ROWS * COLUMNS == NUM_CELLS
    outputs = [
        helper.make_tensor_value_info("box_regression", TensorProto.FLOAT, [1, NUM_CELLS, 4]),
        helper.make_tensor_value_info("class_logits", TensorProto.FLOAT, [1, NUM_CELLS, len(CLASS_NAMES)]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, HEIGHT, WIDTH])
    made = helper.make_graph(graph.nodes, "network", [images], outputs, graph.constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.metadata_props.add(key=METADATA_KEY, value=colour_cells_manifest("raw").to_json())
    return model


def float_model(folder: Path, seed: int = 0) -> FloatModel:
    """The network as calibration reads it from a file."""
    path = folder / "network.onnx"
    onnx.save(network(seed), path)
    return load_float_model(path)


def inputs(count: int, seed: int = 1) -> list[NDArray[np.float32]]:
    """Inputs of the network, each (1, 3, HEIGHT, WIDTH), between 0 and 1."""
    random = np.random.default_rng(seed)
    coarse = random.random((count, 1, 3, HEIGHT // 8, WIDTH // 8), dtype=np.float32)
    return [np.ascontiguousarray(image.repeat(8, axis=2).repeat(8, axis=3)) for image in coarse]
