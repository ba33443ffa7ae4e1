"""Layers that run several times, so that their inputs and weights keep what eight bits leave over."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from boxwright.calibration.candidate import Quantizer, observed_tensors
from boxwright.calibration.executed import executed_layers
from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.sessions import open_session
from boxwright.calibration.statistics import Statistics, collect_statistics
from boxwright.core.placement import rules_for
from quantization_models import LAYERS, float_model, inputs

DENSE = frozenset(LAYERS[:-2]) - {"thin"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    return float_model(tmp_path_factory.mktemp("steps"))


@pytest.fixture(scope="module")
def statistics(model: FloatModel) -> Statistics:
    tensors = observed_tensors(model, fused=False)
    return collect_statistics(model, (({"images": image}, 1, 0) for image in inputs(4)), tensors=tensors)


def error(model: FloatModel, statistics: Statistics, recipe: Recipe) -> float:
    """Mean squared error of the heads on other images."""
    sessions = [
        open_session(proto, optimize=False)
        for proto in (model.raw_proto, Quantizer(model, statistics).build(recipe, raw=True))
    ]
    errors = []
    for image in inputs(4, seed=5):
        wanted, got = (session.run(None, {"images": image}) for session in sessions)
        errors += [np.square(one - two).mean() for one, two in zip(wanted, got, strict=True)]
    return float(np.mean(errors))


@pytest.mark.parametrize("engine", ["openvino", "tensorrt"])
def test_each_step_takes_most_of_the_error_away(model: FloatModel, statistics: Statistics, engine: str) -> None:
    base = Recipe(rules=rules_for(engine), float_layers=frozenset({"thin"}))
    once, fine, finest = (
        error(model, statistics, recipe)
        for recipe in (
            base,
            Recipe(rules=base.rules, float_layers=base.float_layers, fine_layers=DENSE),
            Recipe(rules=base.rules, float_layers=base.float_layers, finest_layers=DENSE),
        )
    )
    assert fine < 0.7 * once
    assert finest < 0.02 * once


def test_one_layer_alone_and_one_that_is_float_all_the_same(model: FloatModel, statistics: Statistics) -> None:
    rules = rules_for("openvino")
    others = frozenset(LAYERS) - {"left"}
    once = error(model, statistics, Recipe(rules=rules, float_layers=others))
    alone = Recipe(rules=rules, float_layers=others, finest_layers=frozenset({"left", "right"}))
    assert error(model, statistics, alone) < 0.05 * once
    nodes = [node.name for node in Quantizer(model, statistics).build(alone).graph.node if node.op_type == "Conv"]
    assert sorted(name for name in nodes if "_fine" in name) == ["left_fine_input", "left_fine_weight"]


def test_openvino_runs_every_step_on_integers(model: FloatModel, statistics: Statistics) -> None:
    pytest.importorskip("openvino")
    fine, finest = frozenset({"left", "deep"}), DENSE - {"left", "deep"}
    recipe = Recipe(
        rules=rules_for("openvino"), float_layers=frozenset({"thin"}), fine_layers=fine, finest_layers=finest
    )
    macs = {layer.name: statistics.macs(layer) for layer in model.layers}
    proto = Quantizer(model, statistics).build(recipe, raw=True)
    executed = executed_layers("openvino", proto, model, macs)
    assert executed is not None
    assert executed.integer == DENSE
    steps = [*DENSE, *(f"{name}_fine_input" for name in DENSE), *(f"{name}_fine_weight" for name in finest)]
    assert convolutions_of_openvino(proto) == {
        **dict.fromkeys(steps, "u8"),
        **dict.fromkeys(("thin", "boxes", "classes"), "f32"),
    }


def convolutions_of_openvino(proto: onnx.ModelProto) -> dict[str, str]:
    """Of each convolution in the graph that OpenVINO made: what it computes in."""
    import openvino

    core = openvino.Core()
    wishes = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(proto.SerializeToString()), "CPU", wishes)
    wanted = {node.name for node in proto.graph.node if node.op_type == "Conv"}
    found = {}
    for operation in compiled.get_runtime_model().get_ops():
        info = {key: str(getattr(value, "value", value)) for key, value in operation.get_rt_info().items()}
        if info.get("layerType") == "Convolution":
            (name,) = wanted & set(info["originalLayersNames"].split(","))
            found[name] = info["runtimePrecision"]
    return found
