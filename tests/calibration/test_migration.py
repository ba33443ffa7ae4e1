"""Moving a channel's magnitude from the activations of a matrix product into its weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from boxwright.calibration.float_model import Layer
from boxwright.calibration.histograms import ChannelHistograms
from boxwright.calibration.layer_quantization import quantize_input, quantize_weights
from boxwright.calibration.placement import RULES, rules_for
from boxwright.calibration.qdq import QuantizedLayer, insert_qdq
from boxwright.calibration.qdq_fused import insert_fused
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.sessions import open_session

WIDTH = 16
# As behind a layer normalisation of a transformer, whose few loud channels are the same for every token.
LOUD = np.where(np.arange(WIDTH) % 8 == 3, 60.0, 1.0).astype(np.float32)


def tokens(seed: int) -> np.ndarray:
    """(1, 50, WIDTH) with loud channels."""
    values = np.random.default_rng(seed).normal(size=(1, 50, WIDTH)) * LOUD
    return values.astype(np.float32)


def product(weight: np.ndarray) -> onnx.ModelProto:
    """x W, W (WIDTH, 8)."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["images", "weight"], ["out"], name="product")],
        "product",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 50, WIDTH])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 50, 8])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def mean_error(engine: str, migration: float | None) -> float:
    """Of the quantized product, relative."""
    weight = np.random.default_rng(0).normal(size=(WIDTH, 8)).astype(np.float32)
    layer = Layer(name="product", kind="matmul", input_name="images", output_name="out", weight=weight.T.copy())
    recipe = Recipe(rules=rules_for(engine), migration=migration)
    histograms = ChannelHistograms(WIDTH)
    histograms.add(np.ascontiguousarray(tokens(1)[0].T))
    quantization = quantize_input([layer], histograms, recipe)
    assert (quantization.factors is None) == (migration is None)
    numbers = QuantizedLayer(
        layer=layer, input=quantization, weight=quantize_weights(layer, histograms, quantization, recipe)
    )
    graph = ir.from_proto(product(weight))
    if recipe.rules.style == "fused":
        insert_fused(graph, {"product": numbers}, lambda name: quantization)
    else:
        insert_qdq(graph, {"product": numbers})
    made = ir.to_proto(graph)
    onnx.checker.check_model(made)
    seen = tokens(2)
    got = open_session(made).run(None, {"images": seen})[0]
    # The loud channels say most of the result, so that it is the quiet ones' part that rounding loses.
    wanted = seen @ weight
    return float(np.abs(got - wanted).mean())


@pytest.mark.parametrize("engine", sorted(RULES))
def test_quiet_channels_keep_their_steps(engine: str) -> None:
    assert mean_error(engine, 0.5) < 0.6 * mean_error(engine, None)
