"""What OpenVINO computes wrongly in INT8 is refused, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from boxwright.core.errors import UnsupportedError
from boxwright.runtimes.backend import open_backend
from boxwright.runtimes.openvino_integers import concatenation_of_signed

openvino = pytest.importorskip("openvino")
_STEP, _CHANNELS = 0.05, 4


class _Graph:
    """Two maps, and what is made of them."""

    def __init__(self, activation_type: str) -> None:
        self._type = np.dtype(activation_type)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: NDArray[np.generic]) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def add(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def quantize(self, x: str) -> str:
        scale = self.constant(np.array(_STEP, np.float32))
        zero_point = self.constant(np.array(128 if self._type == np.uint8 else 0, self._type))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, scale, zero_point), scale, zero_point)

    def conv(self, x: str, channels: int) -> str:
        """A convolution in INT8 that changes nothing."""
        weight = self.constant(np.eye(channels, dtype=np.int8).reshape(channels, channels, 1, 1))
        scale, zeros = self.constant(np.ones(channels, np.float32)), self.constant(np.zeros(channels, np.int8))
        return self.add("Conv", x, self.add("DequantizeLinear", weight, scale, zeros, axis=0), kernel_shape=[1, 1])

    def save(self, path: Path, result: str) -> Path:
        self.nodes.append(helper.make_node("Identity", [result], ["out"]))
        maps = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, _CHANNELS, 6, 6]) for name in ("left", "right")
        ]
        out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "maps", maps, [out], self.constants)
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        return path


def quantized_behind(graph: _Graph) -> str:
    return graph.conv(graph.quantize(graph.add("Concat", "left", "right", axis=1)), 2 * _CHANNELS)


def quantized_behind_factors(graph: _Graph) -> str:
    factors = graph.constant(np.full((1, 2 * _CHANNELS, 1, 1), 1, np.float32))
    both = graph.add("Mul", graph.add("Concat", "left", "right", axis=1), factors)
    return graph.conv(graph.quantize(both), 2 * _CHANNELS)


def quantized_before(graph: _Graph) -> str:
    pooled = [graph.add("MaxPool", graph.quantize(x), kernel_shape=[1, 1]) for x in ("left", "right")]
    return graph.conv(graph.add("Concat", *pooled, axis=1), 2 * _CHANNELS)


def float_concatenation(graph: _Graph) -> str:
    halves = [graph.conv(graph.quantize(x), _CHANNELS) for x in ("left", "right")]
    return graph.add("Concat", *halves, axis=1)


_PATTERNS = (quantized_behind, quantized_behind_factors, quantized_before, float_concatenation)


@pytest.mark.parametrize("activation_type", ["int8", "uint8"])
@pytest.mark.parametrize("pattern", _PATTERNS)
def test_what_opens_is_right(tmp_path: Path, pattern: object, activation_type: str) -> None:
    assert callable(pattern)
    graph = _Graph(activation_type)
    path = graph.save(tmp_path / "m.onnx", pattern(graph))
    may_be_wrong = activation_type == "int8" and pattern is not float_concatenation
    name = concatenation_of_signed(openvino.Core().read_model(path))
    assert (name is not None) == may_be_wrong
    values = np.linspace(-1, 1, _CHANNELS * 36, dtype=np.float32).reshape(1, _CHANNELS, 6, 6)
    if _is_refused(path):
        assert may_be_wrong
        return
    with open_backend(path, backend="openvino") as backend:
        (result,) = backend.run({"left": values, "right": values}).values()
    assert np.abs(result - np.concatenate([values, values], axis=1)).max() < 0.51 * _STEP


def _is_refused(path: Path) -> bool:
    """Whether this OpenVINO is one of those that compute it wrongly."""
    try:
        open_backend(path, backend="openvino").close()
    except UnsupportedError as error:
        return "--engine openvino" in error.fix and "int8 around" in error.got
    return False
