"""Weights rounded so that the errors of one make up for those of another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import pytest

from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.input_columns import Geometry, sample_columns
from boxwright.calibration.layer_quantization import quantize_input, quantize_weights
from boxwright.calibration.qdq import QuantizedLayer, insert_qdq
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.repairs import RepairContext, repairs
from boxwright.calibration.repairs.learned_rounding import round_columns
from boxwright.calibration.sessions import Tensors, open_session
from boxwright.calibration.statistics import collect_statistics
from boxwright.core.placement import rules_for
from quantization_models import LAYERS, float_model, inputs

RECIPE = Recipe(rules=rules_for("openvino"))
NUM_IMAGES = 32


def covariance_of(samples: np.ndarray) -> np.ndarray:
    """Of (K, n)."""
    centred = samples - samples.mean(axis=1, keepdims=True)
    return centred @ centred.T / samples.shape[1]


def output_error(difference: np.ndarray, covariance: np.ndarray) -> float:
    return float(np.einsum("rk,kl,rl->", difference, covariance, difference))


def test_inputs_that_go_together_are_rounded_against_each_other() -> None:
    random = np.random.default_rng(0)
    samples = random.normal(size=(4, 500)).repeat(6, axis=0) + 0.05 * random.normal(size=(24, 500))
    covariance = covariance_of(samples)
    weights = random.normal(0, 30, (16, 24))
    rounded = round_columns(weights[None], covariance[None])[0]
    nearest = output_error(np.round(weights) - weights, covariance)
    assert output_error(rounded - weights, covariance) < 0.2 * nearest
    np.testing.assert_array_equal(rounded, np.round(rounded))
    assert np.abs(rounded - weights).max() < 3


def test_inputs_that_do_not_go_together_are_rounded_to_the_nearest() -> None:
    weights = np.random.default_rng(1).normal(0, 30, (2, 3, 9))
    covariance = np.array([np.diag(np.arange(1.0, 10)), np.diag(np.arange(9.0, 0, -1))])
    np.testing.assert_array_equal(round_columns(weights, covariance), np.round(weights))


def test_no_weight_leaves_its_range() -> None:
    weights = np.full((1, 2, 8), 127.4)
    assert round_columns(weights, np.ones((1, 8, 8))).max() == 127


def test_an_input_that_is_always_zero_does_no_harm() -> None:
    weights = np.random.default_rng(2).normal(0, 30, (1, 3, 4))
    assert np.isfinite(round_columns(weights, np.zeros((1, 4, 4)))).all()


@pytest.mark.parametrize("geometry", [
    Geometry(kernel_hw=(3, 3), stride_hw=(2, 2), pads=(1, 1, 1, 1)),
    Geometry(kernel_hw=(1, 5), pads=(0, 2, 0, 2), dilation_hw=(1, 2)),
])  # fmt: skip
def test_columns_are_what_the_convolution_reads(geometry: Geometry) -> None:
    """The layer's results at the drawn positions are among those of the whole convolution."""
    random = np.random.default_rng(3)
    activation = random.normal(size=(2, 7, 11)).astype(np.float32)
    weight = random.normal(size=(1, 2, *geometry.kernel_hw)).astype(np.float32)
    columns = sample_columns(activation, geometry, 300, random)
    got = np.einsum("ct,ctn->n", weight[0].reshape(2, -1), columns)
    node = onnx.helper.make_node(
        "Conv", ["x", "w"], ["y"], strides=geometry.stride_hw, pads=geometry.pads, dilations=geometry.dilation_hw
    )
    whole = onnx.reference.ReferenceEvaluator(node).run(None, {"x": activation[None], "w": weight})[0].ravel()
    distances = np.abs(got[:, None] - whole[None]).min(axis=1)
    assert distances.max() < 1e-4
    assert len(set(np.abs(got[:, None] - whole[None]).argmin(axis=1))) == whole.size  # every position is drawn


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    return float_model(tmp_path_factory.mktemp("rounding"))


def prepared(model: FloatModel, *, work: float) -> tuple[dict[str, QuantizedLayer], RepairContext]:
    """All layers but the predictions with coarse weights, whose rounding matters."""
    tensors = {layer.input_name: layer.channel_axis for layer in model.layers}
    statistics = collect_statistics(model, (({"images": x}, 1, 0) for x in inputs(NUM_IMAGES)), tensors=tensors)
    layers = {}
    for layer in (model.layer(name) for name in LAYERS[:-2]):
        histograms = statistics.of(layer.input_name)
        quantization = quantize_input([layer], histograms, RECIPE)
        weight = quantize_weights(layer, histograms, quantization, RECIPE)
        layers[layer.name] = QuantizedLayer(layer=layer, input=quantization, weight=weight)

    def batches() -> Iterator[tuple[Tensors, int]]:
        for image in inputs(NUM_IMAGES):
            yield {"images": image}, 1

    return layers, RepairContext(model=model, statistics=statistics, recipe=RECIPE, batches=batches, work=work)


def test_the_heads_come_closer_to_those_of_the_float_model(model: FloatModel) -> None:
    layers, context = prepared(model, work=60)
    repaired = repairs()["learned_rounding"].run(layers, context)
    assert repaired.keys() == layers.keys()
    changed = [name for name in layers if repaired[name] is not layers[name]]
    assert len(changed) >= 4
    images = inputs(8, seed=9)
    wanted = heads(model.raw_proto, images)
    errors = []
    for chosen in (layers, repaired):
        graph = ir.from_proto(model.raw_proto)
        insert_qdq(graph, chosen)
        errors.append(np.square(heads(ir.to_proto(graph), images) - wanted).mean())
    assert errors[1] < errors[0]


def heads(proto: onnx.ModelProto, images: list[np.ndarray]) -> np.ndarray:
    session = open_session(proto, optimize=False)
    return np.concatenate([array.ravel() for image in images for array in session.run(None, {"images": image})])


def test_without_work_nothing_changes(model: FloatModel) -> None:
    layers, context = prepared(model, work=0)
    repaired = repairs()["learned_rounding"].run(layers, context)
    assert all(repaired[name] is layers[name] for name in layers)


def test_a_slow_machine_comes_to_the_same_weights(model: FloatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, context = prepared(model, work=60)
    repair = repairs()["learned_rounding"]
    quick = repair.run(layers, context)
    clock = itertools.count(step=3600.0)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    slow = repair.run(layers, context)
    for name in layers:
        np.testing.assert_array_equal(slow[name].weight.values, quick[name].weight.values)


def test_less_work_looks_at_fewer_images(model: FloatModel) -> None:
    layers, context = prepared(model, work=60)
    drawn = []
    for work in np.geomspace(1e-4, 1.0, 30):
        images = []

        def counted(images: list[int] = images) -> Iterator[tuple[Tensors, int]]:
            for index, batch in enumerate(context.batches()):
                images.append(index)
                yield batch

        repairs()["learned_rounding"].run(layers, replace(context, batches=counted, work=float(work)))
        drawn.append(len(images))
    assert drawn == sorted(drawn) and drawn[0] == 0 and drawn[-1] == NUM_IMAGES
    assert any(8 < count < NUM_IMAGES for count in drawn)
