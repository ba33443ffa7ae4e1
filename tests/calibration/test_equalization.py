"""Channels made alike across layers: the same function, and less lost to one scale for a whole tensor."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from boxwright.calibration.candidate import Quantizer, observed_tensors
from boxwright.calibration.equalization import equalize, find_chains
from boxwright.calibration.float_model import FloatModel, load_float_model
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.sessions import open_session
from boxwright.calibration.statistics import Statistics, collect_statistics
from boxwright.core.placement import rules_for
from cells_network import HEADS, cells_network
from models_for_tests import CLASS_NAMES, STRIDE
from quantization_models import float_model, inputs

_CHANNELS = 16
RECIPE = Recipe(rules=rules_for("onnxruntime"))


def network(activation: str) -> onnx.ModelProto:
    """Three layers with an activation between, of channels that differ a hundredfold, and two that predict."""
    random = np.random.default_rng(0)
    spread = np.geomspace(0.1, 10, _CHANNELS)[:, None, None, None]
    arrays = {
        "stem.weight": random.normal(0, 0.1, (_CHANNELS, 3, STRIDE, STRIDE)) * spread,
        "stem.bias": random.normal(0, 0.1, _CHANNELS) * spread.ravel(),
        "mix.weight": random.normal(0, 0.4, (_CHANNELS, 1, 3, 3)) / spread,
        "mix.bias": random.normal(0, 0.1, _CHANNELS),
        "blend.weight": random.normal(0, 0.3, (_CHANNELS, _CHANNELS, 1, 1)),
        "class_logits.weight": random.normal(0, 0.3, (len(CLASS_NAMES), _CHANNELS, 1, 1)),
        "box_regression.weight": random.normal(0, 0.3, (4, _CHANNELS, 1, 1)),
    }
    alpha = {"alpha": 0.1} if activation == "LeakyRelu" else {}
    nodes = [
        helper.make_node("Conv", ["images", "stem.weight", "stem.bias"], ["s"], "stem", strides=[STRIDE] * 2),
        helper.make_node(activation, ["s"], ["t"], "act", **alpha),
        helper.make_node("Conv", ["t", "mix.weight", "mix.bias"], ["m"], "mix", pads=[1] * 4, group=_CHANNELS),
        helper.make_node(activation, ["m"], ["n"], "act_2", **alpha),
        helper.make_node("Conv", ["n", "blend.weight"], ["b"], "blend"),
    ]
    return cells_network(nodes, arrays, last="b", predictions={head: head for head in HEADS})


def read(folder: Path, activation: str) -> FloatModel:
    onnx.save(network(activation), folder / "m.onnx")
    return load_float_model(folder / "m.onnx")


def batches(seed: int = 1) -> list[tuple[dict[str, NDArray[np.float32]], int]]:
    return [({"images": image - np.float32(0.5)}, 1) for image in inputs(6, seed=seed)]


def statistics_of(model: FloatModel) -> Statistics:
    tensors = observed_tensors(model)
    return collect_statistics(model, ((arrays, count, 0) for arrays, count in batches()), tensors=tensors)


def heads(proto: onnx.ModelProto) -> list[NDArray[np.float32]]:
    session = open_session(proto)
    return [head for arrays, _ in batches(seed=7) for head in session.run(None, arrays)]


def error(wanted: list[NDArray[np.float32]], got: list[NDArray[np.float32]]) -> float:
    return float(np.mean([np.square(one - two).mean() for one, two in zip(wanted, got, strict=True)]))


@pytest.mark.parametrize("activation", ["LeakyRelu", "Relu"])
def test_the_function_stays_and_int8_loses_less(tmp_path: Path, activation: str) -> None:
    model = read(tmp_path, activation)
    equalized = equalize(model, batches())
    assert equalized is not None
    wanted = heads(model.raw_proto)
    for proto in (equalized.raw_proto, equalized.proto):
        np.testing.assert_allclose(np.concatenate(heads(proto), None), np.concatenate(wanted, None), atol=1e-4)
    assert not np.allclose(equalized.layer("stem").weight, model.layer("stem").weight)
    quantizer = Quantizer(model, statistics_of(model), equalized=Quantizer(equalized, statistics_of(equalized)))
    assert quantizer.can_equalize
    before, after = (
        error(wanted, heads(quantizer.build(recipe, raw=True))) for recipe in (RECIPE, replace(RECIPE, equalizes=True))
    )
    assert after < 0.5 * before
    # A layer in float has the weights that fit what it now reads.
    in_float = replace(RECIPE, equalizes=True, float_layers=frozenset({"mix"}))
    assert error(wanted, heads(quantizer.build(in_float, raw=True))) < before


def test_only_what_stays_the_same_function_is_a_chain(tmp_path: Path) -> None:
    chains = find_chains(read(tmp_path, "LeakyRelu"))
    assert [(chain.first.name, chain.second.name, chain.observed) for chain in chains] == [
        ("stem", "mix", "s"),
        ("mix", "blend", "m"),
    ]
    assert [chain.observed for chain in find_chains(read(tmp_path, "Relu"))] == ["t", "n"]
    # SiLU, sums and what has two readers are not.
    assert find_chains(read(tmp_path, "Sigmoid")) == []
    assert find_chains(float_model(tmp_path)) == []
    assert equalize(float_model(tmp_path), batches()) is None
