"""Moving a channel's magnitude from the activations of a matrix product into its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from boxwright.calibration.float_model import Layer
from boxwright.calibration.histograms import ChannelHistograms
from boxwright.calibration.layer_quantization import quantize_input, quantize_weights
from boxwright.calibration.qdq import QuantizedLayer, insert_qdq
from boxwright.calibration.qdq_fused import insert_fused
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.sessions import open_session
from boxwright.core.placement import RULES, rules_for

WIDTH = 16
# As behind a layer normalisation of a transformer, whose few loud channels are the same for every token.
LOUD = np.where(np.arange(WIDTH) % 8 == 3, 60.0, 1.0).astype(np.float32)


def tokens(seed: int) -> np.ndarray:
    """(1, 50, WIDTH) with loud channels."""
    values = np.random.default_rng(seed).normal(size=(1, 50, WIDTH)) * LOUD
    return values.astype(np.float32)


def product(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """x W + b, W (WIDTH, 8)."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["images", "weight"], ["product_out"], name="product"),
            helper.make_node("Add", ["bias", "product_out"], ["out"], name="sum"),
        ],
        "product",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 50, WIDTH])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 50, 8])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(bias, "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantized(engine: str, migration: float | None) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The product in float, and quantized."""
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(WIDTH, 8)).astype(np.float32), random.normal(size=8).astype(np.float32)
    layer = Layer(name="product", kind="matmul", input_name="images", output_name="product_out", weight=weight.T.copy())
    recipe = Recipe(rules=rules_for(engine), migration=migration)
    histograms = ChannelHistograms(WIDTH)
    histograms.add(np.ascontiguousarray(tokens(1)[0].T))
    quantization = quantize_input([layer], histograms, recipe)
    assert (quantization.factors is None) == (migration is None)
    numbers = QuantizedLayer(
        layer=layer, input=quantization, weight=quantize_weights(layer, histograms, quantization, recipe)
    )
    exact = product(weight, bias)
    graph = ir.from_proto(exact)
    if recipe.rules.style == "fused":
        insert_fused(graph, {"product": numbers}, lambda name: quantization)
    else:
        insert_qdq(graph, {"product": numbers})
    made = ir.to_proto(graph)
    onnx.checker.check_model(made)
    return exact, made


def mean_error(engine: str, migration: float | None) -> float:
    wanted, got = (open_session(model).run(None, {"images": tokens(2)})[0] for model in quantized(engine, migration))
    return float(np.abs(got - wanted).mean())


@pytest.mark.parametrize("engine", sorted(RULES))
def test_quiet_channels_keep_their_steps(engine: str) -> None:
    assert mean_error(engine, 0.5) < 0.6 * mean_error(engine, None)


def test_onnxruntime_runs_product_and_bias_on_integers(tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns that the saved graph is for this machine alone
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    _, made = quantized("onnxruntime", 0.5)
    onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "QGemm" in operators
    assert not operators & {"Gemm", "MatMul", "Add"}
