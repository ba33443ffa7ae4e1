"""Everything between two quantized layers on integers, as ONNX Runtime wants it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.histograms import ChannelHistograms
from boxwright.calibration.layer_quantization import InputQuantization, quantize_input, quantize_weights
from boxwright.calibration.qdq import QuantizedLayer
from boxwright.calibration.qdq_fused import fused_tensors, insert_fused
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.sessions import open_session
from boxwright.calibration.statistics import Statistics, collect_statistics
from boxwright.core.placement import rules_for
from quantization_models import LAYERS, float_model, inputs
from tolerances import INT8_HEADS

RECIPE = Recipe(rules=rules_for("onnxruntime"))
NOT_PREDICTING = LAYERS[:-2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    return float_model(tmp_path_factory.mktemp("fused"))


@pytest.fixture(scope="module")
def statistics(model: FloatModel) -> Statistics:
    tensors = {layer.input_name: layer.channel_axis for layer in model.layers} | fused_tensors(model)
    return collect_statistics(model, (({"images": image}, 1, 0) for image in inputs(8)), tensors=tensors)


def fused(model: FloatModel, statistics: Statistics, names: tuple[str, ...]) -> onnx.ModelProto:
    """The model with these layers on integers."""
    layers = {}
    for layer in (model.layer(name) for name in names):
        histograms = statistics.of(layer.input_name)
        quantization = quantize_input([layer], histograms, RECIPE)
        weight = quantize_weights(layer, histograms, quantization, RECIPE)
        layers[layer.name] = QuantizedLayer(layer=layer, input=quantization, weight=weight)
    graph = ir.from_proto(model.raw_proto)
    insert_fused(graph, layers, lambda name: quantize_input((), statistics.of(name), RECIPE))
    made = ir.to_proto(graph)
    onnx.checker.check_model(made)
    return made


def optimized_ops(proto: onnx.ModelProto, folder: Path) -> Counter[str]:
    """How many nodes of each kind ONNX Runtime makes of a model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns that the saved graph is for this machine alone
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_nothing_between_quantized_layers_stays_in_float(
    model: FloatModel, statistics: Statistics, tmp_path: Path
) -> None:
    ops = optimized_ops(fused(model, statistics, LAYERS), tmp_path)
    assert ops["QLinearConv"] == len(LAYERS)
    assert ops["QLinearAdd"] == 1
    assert ops["QLinearConcat"] == 1
    assert ops["QLinearLeakyRelu"] == 1
    assert ops["QLinearSigmoid"] == 4
    assert ops["QLinearMul"] == 4
    floats = {"Conv", "FusedConv", "Sigmoid", "QuickGelu", "Mul", "Add", "Relu", "LeakyRelu", "Concat"}
    assert not floats & ops.keys()
    assert ops["QuantizeLinear"] == 1  # of the images
    assert ops["DequantizeLinear"] == 2  # of the two heads


def test_heads_stay_close_to_those_of_the_float_model(model: FloatModel, statistics: Statistics) -> None:
    made = fused(model, statistics, NOT_PREDICTING)
    before, after = open_session(model.raw_proto), open_session(made)
    for image in inputs(4, seed=2):
        for wanted, got in zip(before.run(None, {"images": image}), after.run(None, {"images": image}), strict=True):
            assert np.abs(got - wanted).mean() < INT8_HEADS * np.abs(wanted).mean()


def test_openvino_gives_the_same_heads(model: FloatModel, statistics: Statistics, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    made = fused(model, statistics, NOT_PREDICTING)
    onnx.save(made, tmp_path / "fused.onnx")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(tmp_path / "fused.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = inputs(1, seed=3)[0]
    wanted = open_session(model.raw_proto).run(None, {"images": image})
    for index, head in enumerate(wanted):
        got = compiled({"images": image})[compiled.outputs[index]]
        assert np.abs(got - head).mean() < INT8_HEADS * np.abs(head).mean()


def test_a_layer_in_float_ends_the_region(model: FloatModel, statistics: Statistics, tmp_path: Path) -> None:
    ops = optimized_ops(fused(model, statistics, tuple(name for name in NOT_PREDICTING if name != "wide")), tmp_path)
    assert ops["QLinearConv"] == len(NOT_PREDICTING) - 1
    # What follows `thin` is read by a float layer alone: its SiLU is not worth integers.
    assert ops["QLinearSigmoid"] == 2
    assert ops["Conv"] + ops["FusedConv"] == 3


def test_what_moves_integers_keeps_their_scale(model: FloatModel, statistics: Statistics) -> None:
    made = fused(model, statistics, LAYERS)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    nodes = {node.name: node for node in made.graph.node}
    for moving in ("pool", "up"):
        before = next(node for node in made.graph.node if nodes[moving].input[0] in node.output)
        after = next(node for node in made.graph.node if f"{moving}_out" in node.input)
        assert (before.op_type, after.op_type) == ("DequantizeLinear", "QuantizeLinear")
        assert [constants[name].item() for name in before.input[1:]] == [
            constants[name].item() for name in after.input[1:]
        ]


def test_what_is_concatenated_keeps_scales_of_its_own(
    model: FloatModel, statistics: Statistics, tmp_path: Path
) -> None:
    """Each part has the finest steps that it can have; the engine brings them to the scale of the whole."""
    parts = {name: quantize_input((), statistics.of(name), RECIPE).scale for name in ("deep_leaky_out", "sum_out")}
    whole = quantize_input((), statistics.of("both_out"), RECIPE).scale
    made = fused(model, statistics, LAYERS)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    producers = {name: node for node in made.graph.node for name in node.output}
    concat = next(node for node in made.graph.node if node.name == "both")
    inputs_of_concat = [producers[name] for name in concat.input]
    assert [node.op_type for node in inputs_of_concat] == ["DequantizeLinear"] * 2
    scales = [constants[node.input[1]].item() for node in inputs_of_concat]
    assert scales == list(parts.values()) and scales[0] != scales[1]
    # So does the engine: one node with a scale for each part and one for the result.
    optimized_ops(made, tmp_path)
    optimized = onnx.load(tmp_path / "optimized.onnx")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in optimized.graph.initializer}
    (node,) = [node for node in optimized.graph.node if node.op_type == "QLinearConcat"]
    assert [constants[node.input[index]].item() for index in (0, 3, 6)] == [whole, *scales]


def test_steps_are_not_spent_where_silu_is_flat(model: FloatModel) -> None:
    layer = model.layer("left")
    input_of_layer = InputQuantization(factors=None, scale=0.1, zero_point=0, activation_type="uint8")
    layers = {
        name: QuantizedLayer(
            layer=model.layer(name),
            input=input_of_layer,
            weight=quantize_weights(
                model.layer(name), _one_value(model.layer(name).num_inputs), input_of_layer, Recipe(corrects_bias=False)
            ),
        )
        for name in ("left", "right")
    }
    graph = ir.from_proto(model.raw_proto)
    wide = InputQuantization(factors=None, scale=40 / 255, zero_point=191, activation_type="uint8")  # -30 to 10
    insert_fused(graph, layers, lambda name: wide)
    scales = {value.name: value.const_value.numpy() for value in graph.graph.initializers.values()}
    scale = scales[f"{layer.output_name}/output_scale"]
    zero_point = int(scales[f"{layer.output_name}/output_zero_point"])
    assert -zero_point * scale == pytest.approx(-5, abs=0.05)
    assert (255 - zero_point) * scale == pytest.approx(10, abs=0.1)


def test_a_bias_too_large_for_the_fine_scale_makes_it_coarser(model: FloatModel, statistics: Statistics) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.raw_proto)
    for tensor in proto.graph.initializer:
        if tensor.name == "left.weight":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1e-9), tensor.name))
    layer = model.layer("left")
    quantization = quantize_input([layer], statistics.of(layer.input_name), RECIPE)
    tiny = quantize_weights(layer, statistics.of(layer.input_name), quantization, Recipe(corrects_bias=False))
    tiny = type(tiny)(values=tiny.values, scales=tiny.scales * np.float32(1e-9), bias_change=tiny.bias_change)
    graph = ir.from_proto(proto)
    insert_fused(
        graph,
        {"left": QuantizedLayer(layer=layer, input=quantization, weight=tiny)},
        lambda name: quantize_input((), statistics.of(name), RECIPE),
    )
    constants = {value.name: value.const_value.numpy() for value in graph.graph.initializers.values()}
    wanted = next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == "left.bias")
    got = constants["left/bias_quantized"] * constants["left/bias_scale"]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_tensors_to_observe_hold_all_that_is_asked_for(model: FloatModel, statistics: Statistics) -> None:
    observed = fused_tensors(model)
    assert "stem_out" in observed
    assert "sum_out" in observed
    assert "down_relu_out" in observed  # behind the ReLU, not before it
    assert "down_out" not in observed
    assert "stem_sigmoid_out" not in observed  # between 0 and 1, whatever the images show
    assert observed.keys() <= statistics.histograms.keys()


def _one_value(num_channels: int) -> ChannelHistograms:
    histograms = ChannelHistograms(num_channels)
    histograms.add(np.ones((num_channels, 4), dtype=np.float32))
    return histograms
