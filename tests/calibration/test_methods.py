"""INT8 by other people's tools: NNCF, and TensorRT's calibrator."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from boxwright.calibration.float_model import FloatModel, load_float_model
from boxwright.calibration.methods import MethodInputs, trt_cache
from boxwright.calibration.methods import nncf as nncf_method
from boxwright.calibration.sessions import Tensors, open_session, with_outputs
from boxwright.core.errors import InputError
from boxwright.runtimes.backend import open_backend
from quantization_models import LAYERS, float_model, inputs, network
from tolerances import INT8_HEADS

NUM_IMAGES = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    return float_model(tmp_path_factory.mktemp("methods"))


def method_inputs(model: FloatModel, engine: str, told: list[int], *, last: float = 1.0) -> MethodInputs:
    """`NUM_IMAGES` images, the last of them multiplied by `last`."""

    def batches() -> Iterator[tuple[Tensors, int]]:
        images = inputs(NUM_IMAGES)
        for image in [*images[:-1], images[-1] * np.float32(last)]:
            yield {"images": image}, 1

    return MethodInputs(model=model, batches=batches, num_images=NUM_IMAGES, engine=engine, on_progress=told.append)


def with_a_tail(folder: Path) -> FloatModel:
    """The model with a node behind the raw heads, as decoding and NMS are."""
    proto = network()
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2, np.float32), "two"))
    proto.graph.node.append(onnx.helper.make_node("Mul", ["class_logits", "two"], ["doubled"], name="tail"))
    proto.graph.output.append(onnx.helper.make_tensor_value_info("doubled", onnx.TensorProto.FLOAT, [1, None, None]))
    path = folder / "tail.onnx"
    onnx.save(proto, path)
    return load_float_model(path)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "tensorrt"])
def test_nncf_quantizes_up_to_the_predictions(engine: str, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    model = with_a_tail(tmp_path)
    told: list[int] = []
    result = nncf_method.run(method_inputs(model, engine, told))
    assert result.proto is not None
    onnx.checker.check_model(result.proto)
    assert result.description.startswith("NNCF ")
    assert result.layers_in_float == LAYERS[-2:]
    assert told[-1] == NUM_IMAGES
    names, image = ["box_regression", "doubled"], {"images": inputs(1, seed=4)[0]}
    wanted = open_session(model.proto).run(names, image)
    results = [open_session(result.proto).run(names, image)]
    zero_points = _activation_zero_points(result.proto)
    assert zero_points
    if engine != "openvino":
        assert all(zero_point.size == 1 for zero_point in zero_points)
    onnx.save(result.proto, tmp_path / "quantized.onnx")
    if engine == "tensorrt":
        assert not any(zero_point.any() for zero_point in zero_points)
        assert {zero_point.dtype for zero_point in zero_points} == {np.dtype(np.int8)}
    else:
        assert {zero_point.dtype for zero_point in zero_points} == {np.dtype(np.uint8)}
    if engine == "openvino":
        with open_backend(tmp_path / "quantized.onnx", backend="openvino") as backend:
            outputs = backend.run(image)
            results.append([outputs[name] for name in names])
    for got in results:
        for before, after in zip(wanted, got, strict=True):
            assert 0 < np.abs(after - before).mean() < 2 * INT8_HEADS * np.abs(before).mean()


def _activation_zero_points(proto: onnx.ModelProto) -> list[np.ndarray]:
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    return [
        constants[node.input[2]]
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    ]


def test_nncf_reports_no_use_of_it() -> None:
    """In a process of its own: NNCF keeps quiet under pytest anyway."""
    pytest.importorskip("nncf")
    program = (
        "import os; from boxwright.core.nncf_import import import_nncf; import_nncf('a test'); "
        "from nncf.telemetry.wrapper import telemetry; print(type(telemetry).__name__, os.environ.get('NNCF_CI'))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("NNCF_CI", "NNCF_DEV")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    name, variable = done.stdout.split()
    assert name != "NNCFTelemetry"
    assert variable == "None"


def test_the_cache_holds_a_scale_for_every_tensor(model: FloatModel, tmp_path: Path) -> None:
    told: list[int] = []
    result = trt_cache.run(method_inputs(model, "tensorrt", told))
    assert result.proto is None
    assert result.write_extra is not None
    path = result.write_extra(tmp_path / "m_int8.onnx")
    lines = path.read_text().splitlines()
    assert (
        lines[0] == f"TRT-{trt_cache._version_number(trt_cache.installed_version() or (8, 6, 1))}-EntropyCalibration2"
    )
    scales = {
        name: struct.unpack(">f", bytes.fromhex(text))[0] for name, text in (line.split(": ") for line in lines[1:])
    }
    computed = [name for node in model.raw_proto.graph.node for name in node.output]
    assert list(scales) == ["images", *computed]
    assert told[-1] == NUM_IMAGES
    # Nothing lies far outside what the scale spans, and the scale is not much larger than it must be.
    session = open_session(with_outputs(model.raw_proto, computed))
    largest = np.max(
        [[np.abs(array).max() for array in session.run(computed, {"images": x})] for x in inputs(8)], axis=0
    )
    for name, magnitude in zip(computed, largest, strict=True):
        assert 0.2 * magnitude < 127 * scales[name] < 1.01 * magnitude, name


def test_the_emulation_computes_as_tensorrt_would(model: FloatModel) -> None:
    """Every layer's input rounded and clipped to the cache's steps without a zero point, weights by output channel."""
    method = method_inputs(model, "tensorrt", [])
    scales = trt_cache.tensor_scales(method)
    emulation = trt_cache.run(method).emulation
    assert emulation is not None
    onnx.checker.check_model(emulation)
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in emulation.graph.initializer}
    makers = {node.output[0]: node for node in emulation.graph.node}
    found = {}
    for layer in model.layers:
        (node,) = [node for node in emulation.graph.node if node.name == layer.name]
        dequantize = makers[node.input[0]]
        quantize = makers[dequantize.input[0]]
        assert quantize.input[0] == layer.input_name
        assert list(dequantize.input[1:]) == list(quantize.input[1:])
        zero_point = constants[quantize.input[2]]
        assert zero_point == 0 and zero_point.dtype == np.int8
        found[layer.input_name] = float(constants[quantize.input[1]])
        integers, steps, zeros = (constants[name] for name in makers[node.input[1]].input)
        assert not zeros.any() and len(steps) == len(integers)
        assert (np.abs(integers.reshape(len(integers), -1)).max(axis=1) == 127).all()
        by_output = steps.reshape(-1, 1, 1, 1)
        assert (np.abs(integers * by_output - layer.weight) <= by_output * 0.5001).all()
        assert node.input[2] == f"{layer.name}.bias"
    assert found == {name: pytest.approx(scales[name]) for name in found}
    image = {"images": inputs(1, seed=4)[0]}
    for before, after in zip(
        open_session(model.proto).run(None, image), open_session(emulation).run(None, image), strict=True
    ):
        assert 0 < np.abs(after - before).mean() < 4 * INT8_HEADS * np.abs(before).mean()


def padded(folder: Path, *, after: str) -> FloatModel:
    """The network with a half of a tensor, and all of another, turned to minus infinity and back."""
    proto = network()
    channels = 12
    constants = {
        "half": np.arange(channels).reshape(1, channels, 1, 1) % 2 == 0,
        "none": np.zeros((1, channels, 1, 1), bool),
        "pad": np.array(-np.inf, np.float32),
    }
    nodes = [
        onnx.helper.make_node("Where", ["half", after, "pad"], ["partly"], name="partly"),
        onnx.helper.make_node("Where", ["none", after, "pad"], ["never"], name="never"),
        onnx.helper.make_node("Max", ["partly", "never", after], ["back"], name="back"),
    ]
    position = next(index for index, node in enumerate(proto.graph.node) if after in node.output)
    for node in proto.graph.node[position + 1 :]:
        node.input[:] = ["back" if name == after else name for name in node.input]
    for offset, node in enumerate(nodes, 1):
        proto.graph.node.insert(position + offset, node)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    onnx.save(proto, folder / "padded.onnx")
    return load_float_model(folder / "padded.onnx")


def test_padding_with_infinity_between_layers_is_no_fault(model: FloatModel, tmp_path: Path) -> None:
    """Detectors pad scores so; what goes into a layer and what comes out at the end must be finite all the same."""
    plain = trt_cache.tensor_scales(method_inputs(model, "tensorrt", []))
    scales = trt_cache.tensor_scales(method_inputs(padded(tmp_path, after="wide_silu_out"), "tensorrt", []))
    assert "never" not in scales
    assert 0 < scales["partly"] <= 1.01 * plain["wide_silu_out"]
    assert {name: scales[name] for name in plain} == pytest.approx(plain)
    proto = network()
    head = next(node for node in proto.graph.node if "class_logits" in node.output)
    nodes = [
        onnx.helper.make_node("Where", ["none", head.input[0], "pad"], ["never"], name="never"),
    ]
    head.input[0] = "never"
    proto.graph.node.insert(len(proto.graph.node) - 1, nodes[0])
    none = np.zeros((1, 1, 1), bool)
    for name, array in (("none", none), ("pad", np.array(-np.inf, np.float32))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "broken.onnx")
    with pytest.raises(InputError, match="expected finite numbers"):
        trt_cache.tensor_scales(method_inputs(load_float_model(tmp_path / "broken.onnx"), "tensorrt", []))


def test_layers_fed_by_constants_alone_stay_in_float_in_the_emulation(model: FloatModel) -> None:
    """DETR's first self-attention of the queries is one: its input has no scale in the cache."""
    scales = trt_cache.tensor_scales(method_inputs(model, "tensorrt", []))
    fed = next(layer for layer in model.layers if layer.name == "thin")
    emulation = trt_cache.emulate(model, {name: scale for name, scale in scales.items() if name != fed.input_name})
    nodes = {node.name: node for node in emulation.graph.node}
    assert nodes["thin"].input[0] == fed.input_name and nodes["thin"].input[1] == "thin.weight"
    assert nodes["wide"].input[0] != "thin_silu_out"


def test_a_later_image_counts_as_the_first(model: FloatModel) -> None:
    plain = trt_cache.tensor_scales(method_inputs(model, "tensorrt", []))
    louder = trt_cache.tensor_scales(method_inputs(model, "tensorrt", [], last=8.0))
    assert louder["images"] > 2 * plain["images"]


@pytest.mark.parametrize(
    ("version", "number"), [((8, 5, 3), 8503), ((8, 6, 1), 8601), ((10, 3, 0), 100300), ((10, 13, 2), 101302)]
)
def test_the_cache_names_the_version(version: tuple[int, int, int], number: int) -> None:
    assert trt_cache.cache_text({}, version) == f"TRT-{number}-EntropyCalibration2\n"


def test_a_scale_is_written_most_significant_byte_first() -> None:
    assert trt_cache.cache_text({"data": 1.0}, (8, 5, 3)).splitlines()[1] == "data: 3f800000"


def test_activations_that_are_not_finite_are_an_error(model: FloatModel) -> None:
    with pytest.raises(InputError, match="finite"):
        trt_cache.run(method_inputs(model, "tensorrt", [], last=float("nan")))
