"""What an engine runs in INT8, counted in the graph that it made itself."""

from __future__ import annotations

import numpy as np
import pytest

from boxwright.calibration.candidate import Quantizer, observed_tensors
from boxwright.calibration.executed import executed_layers
from boxwright.calibration.float_model import FloatModel, load_float_model
from boxwright.calibration.placement import RULES
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.statistics import Statistics, collect_statistics
from colour_network import QUANTIZABLE, save_colour_network
from models_for_tests import HEIGHT, WIDTH


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> FloatModel:
    return load_float_model(save_colour_network(tmp_path_factory.mktemp("model") / "m.onnx"))


@pytest.fixture(scope="module")
def statistics(model: FloatModel) -> Statistics:
    random = np.random.default_rng(0)
    batches = (({"images": random.random((1, 3, HEIGHT, WIDTH), dtype=np.float32)}, 1, 0) for _ in range(4))
    return collect_statistics(model, batches, tensors=observed_tensors(model))


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("in_float", [frozenset(), frozenset({"stem"}), frozenset(QUANTIZABLE)])
def test_layers_left_in_float_run_in_float(
    model: FloatModel, statistics: Statistics, engine: str, in_float: frozenset[str]
) -> None:
    recipe = Recipe(rules=RULES[engine], float_layers=in_float)
    proto = Quantizer(model, statistics).build(recipe, raw=True)
    macs = {layer.name: statistics.macs(layer) for layer in model.layers}
    executed = executed_layers(engine, proto, model, macs)
    assert executed is not None
    assert executed.integer | executed.float == set(macs)
    assert executed.integer.isdisjoint(in_float)
    assert executed.int8_share == pytest.approx(sum(macs[name] for name in executed.integer) / sum(macs.values()))
    if engine == "openvino":
        assert "blend" in in_float or "blend" in executed.integer


def test_an_engine_that_does_not_show_its_graph(model: FloatModel) -> None:
    assert executed_layers("tensorrt", model.proto, model, {}) is None
