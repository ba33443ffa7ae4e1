"""What an engine really runs on integers."""

from __future__ import annotations

import pytest

from boxwright.calibration.candidate import Quantizer, observed_tensors
from boxwright.calibration.evaluation import Evaluator
from boxwright.calibration.executed import executed_layers
from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.statistics import Statistics, collect_statistics
from boxwright.calibration.variant import Variant
from boxwright.core.placement import rules_for
from quantization_models import LAYERS, float_model, inputs


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    return float_model(tmp_path_factory.mktemp("executed"))


@pytest.fixture(scope="module")
def statistics(model: FloatModel) -> Statistics:
    tensors = observed_tensors(model, fused=True, predictions=True)
    return collect_statistics(model, (({"images": image}, 1, 0) for image in inputs(4)), tensors=tensors)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("changes", "in_float"),
    [
        ({}, LAYERS[-2:]),
        ({"quantizes_predictions": True}, ()),
        ({"float_layers": frozenset({"stem", "thin"})}, ("stem", "thin", *LAYERS[-2:])),
    ],
)
def test_layers_and_their_share_are_read_from_the_engines_graph(
    model: FloatModel, statistics: Statistics, engine: str, changes: dict[str, object], in_float: tuple[str, ...]
) -> None:
    pytest.importorskip(engine)
    recipe = Recipe(rules=rules_for(engine), **changes)  # type: ignore[arg-type]
    macs = {layer.name: statistics.macs(layer) for layer in model.layers}
    executed = executed_layers(engine, Quantizer(model, statistics).build(recipe), model, macs)
    assert executed is not None
    assert executed.in_float == set(in_float)
    assert executed.integer == set(LAYERS) - set(in_float)
    wanted = 1 - sum(macs[name] for name in in_float) / sum(macs.values())
    assert executed.int8_share == pytest.approx(wanted)


@pytest.mark.parametrize(("engine", "runs_on_integers"), [("onnxruntime", False), ("openvino", True)])
def test_what_the_file_says_is_not_what_an_engine_does(
    model: FloatModel, statistics: Statistics, engine: str, runs_on_integers: bool
) -> None:
    """With inputs alone quantized ONNX Runtime fuses nothing."""
    pytest.importorskip(engine)
    macs = {layer.name: statistics.macs(layer) for layer in model.layers}
    quantizer = Quantizer(model, statistics)
    recipe = Recipe(rules=rules_for("openvino"))
    in_file = sum(macs[layer.name] for layer in quantizer.quantized(recipe)) / sum(macs.values())
    executed = executed_layers(engine, quantizer.build(recipe), model, macs)
    assert in_file > 0.8 and executed is not None
    assert executed.int8_share == pytest.approx(in_file if runs_on_integers else 0.0)
    # So says the evaluator, whose number decides.
    found = Evaluator(model, quantizer, macs=macs)._int8_share(Variant(engine=engine, recipe=recipe), None)
    assert found == executed.int8_share


def test_a_layer_that_lost_its_name_is_told_by_what_follows_it(model: FloatModel) -> None:
    from boxwright.calibration.executed import _layers_before

    names = [
        "Multiply_21367",
        "Multiply_35030",
        "right_out/dense_scaled/Mul",
        "right_out/dense_quantized/QuantizeLinear",
    ]
    assert _layers_before(names, model.layers) == {"right"}
    assert _layers_before(["sum_out/dense_quantized/QuantizeLinear"], model.layers) == set()


def test_an_engine_that_does_not_show_its_graph(model: FloatModel) -> None:
    assert executed_layers("tensorrt", model.proto, model, {}) is None
