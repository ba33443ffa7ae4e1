"""Signed integers before and behind a concatenation, which OpenVINO may round to whole numbers without a word.

OpenVINO 2026.4 on CPUs moves a quantization through a concatenation, and loses its scale on the way where the integers
are signed (int8 without a zero point, as TensorRT wants them): 0.7 becomes 1. Unsigned ones it computes rightly, and
signed ones without a concatenation too.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from boxwright.core.errors import UnsupportedError

if TYPE_CHECKING:
    import openvino

# What OpenVINO moves a quantization through, to the inputs and to the outputs; arithmetic only with constants.
_ARITHMETIC = frozenset({"Add", "Multiply", "Subtract"})
_UPWARDS = _ARITHMETIC | {"Relu"}
_DOWNWARDS = (
    _ARITHMETIC
    | {"AvgPool", "Convert", "Interpolate", "MaxPool", "Pad", "Relu", "Reshape"}
    | {"Slice", "Split", "StridedSlice", "Transpose", "VariadicSplit"}
)
_STEP = 0.05  # of the model that is tried


def check_signed_integers(model: openvino.Model, core: openvino.Core, device: str, path: str) -> None:
    """Refuse a graph that this OpenVINO computes wrongly on this device.

    Args:
        model: as it was read.
        core: OpenVINO.
        device: its own name of it, e.g. CPU.
        path: of the model, for the message.

    Raises:
        UnsupportedError: where signed integers are concatenated, and OpenVINO does not do that rightly here.
    """
    name = concatenation_of_signed(model)
    if name is None or _is_right(core, device):
        return
    import openvino

    version = openvino.__version__.split("-")[0]
    raise UnsupportedError(
        path,
        expected="activations in uint8 around concatenations, as OpenVINO needs them",
        got=f"int8 around {name!r}, which OpenVINO {version} computes wrongly without a word",
        fix="calibrate with --engine openvino, or run this file on onnxruntime or tensorrt",
    )


def concatenation_of_signed(model: openvino.Model) -> str | None:
    """The name of the first concatenation that a quantization to int8 would be moved through, if any."""
    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        integers = [user for user in _users(node) if _is_to_int8(user)]
        if not integers:
            continue
        found = _above(node.input_value(0).get_node()) or _below(integers)
        if found is not None:
            return found
    return None


def _above(node: Any) -> str | None:
    while node.get_type_name() in _UPWARDS and _is_unary(node):
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name()) if node.get_type_name() == "Concat" else None


def _below(nodes: list[Any]) -> str | None:
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node.get_type_name() == "Concat":
            return str(node.get_friendly_name())
        if node.get_type_name() in _DOWNWARDS and _is_unary(node):
            pending.extend(_users(node))
    return None


def _users(node: Any) -> list[Any]:
    return [target.get_node() for output in node.outputs() for target in output.get_target_inputs()]


def _is_to_int8(node: Any) -> bool:
    return bool(node.get_type_name() == "Convert" and node.get_output_element_type(0).get_type_name() == "i8")


def _is_unary(node: Any) -> bool:
    """Whether nothing but the first input is computed from the images."""
    if node.get_type_name() not in _ARITHMETIC:
        return True
    other = node.input_value(1).get_node()
    while other.get_type_name() in ("Convert", "Reshape"):
        other = other.input_value(0).get_node()
    return bool(other.get_type_name() == "Constant")


@functools.lru_cache(maxsize=8)
def _is_right(core: openvino.Core, device: str) -> bool:
    """Whether a model of one convolution behind a concatenation of int8 gives what it was given; takes 30 ms."""
    import openvino

    given = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 4, 4, 4)
    try:
        compiled = core.compile_model(_smallest_model(), device, {"INFERENCE_PRECISION_HINT": openvino.Type.f32})
        result = compiled([given, given])[0]
    except RuntimeError:
        return True  # then the model itself will say why
    return float(np.abs(result - np.concatenate([given, given], axis=1)).max()) < _STEP


def _smallest_model() -> openvino.Model:
    import openvino
    from openvino import opset13 as operators

    def constant(value: float) -> Any:
        return operators.constant(np.array(value, dtype=np.float32))

    halves = [operators.parameter([1, 4, 4, 4], np.float32, name=name) for name in ("first", "second")]
    both = operators.concat(halves, 1)
    limits = [constant(-128 * _STEP), constant(127 * _STEP), constant(-128), constant(127)]
    integers = operators.convert(operators.fake_quantize(both, *limits, 256), "i8")
    floats = operators.multiply(operators.convert(integers, "f32"), constant(_STEP))
    identity = operators.constant(np.eye(8, dtype=np.int8).reshape(8, 8, 1, 1))
    weight = operators.multiply(operators.convert(identity, "f32"), constant(1))
    result = operators.convolution(floats, weight, [1, 1], [0, 0], [0, 0], [1, 1])
    return openvino.Model([result], halves)
