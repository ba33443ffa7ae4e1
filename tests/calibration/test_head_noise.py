"""The error of raw heads before NMS, and the order of layers that follows from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from boxwright.calibration.float_model import Layer
from boxwright.calibration.head_noise import HeadReader, total_noise
from boxwright.calibration.sensitivity import LayerSensitivity, harm_of_layers
from models_for_tests import CLASS_NAMES, NUM_CELLS, colour_cells_manifest


def heads(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "box_regression": random.normal(0, 0.3, (2, NUM_CELLS, 4)).astype(np.float32),
        "class_logits": random.normal(-1, 1, (2, NUM_CELLS, len(CLASS_NAMES))).astype(np.float32),
    }


def noise(changed: dict[str, np.ndarray]) -> float:
    reader, reference = HeadReader(colour_cells_manifest()), heads()
    return total_noise([reader.errors(reader.candidates(reference, row), changed, row) for row in range(2)])


def test_the_same_heads_have_no_error() -> None:
    assert noise(heads()) < 1e-12


@pytest.mark.parametrize("name", ["box_regression", "class_logits"])
def test_independent_changes_add_up_in_squares(name: str) -> None:
    random = np.random.default_rng(1)
    first, second = (random.normal(0, 0.01, heads()[name].shape).astype(np.float32) for _ in range(2))
    alone = [noise(heads() | {name: heads()[name] + change}) for change in (first, second)]
    both = noise(heads() | {name: heads()[name] + first + second})
    assert min(alone) > 0
    assert both == pytest.approx(sum(alone), rel=0.3)


def test_heads_that_are_no_numbers_count_as_lost_and_background_not_at_all() -> None:
    broken = heads() | {"class_logits": np.full_like(heads()["class_logits"], np.nan)}
    assert noise(broken) == pytest.approx(1.0)
    background = heads()
    background["class_logits"] = np.full_like(background["class_logits"], -20)
    reader = HeadReader(colour_cells_manifest())
    assert len(reader.candidates(background, 0).anchors) == 0
    assert total_noise([reader.errors(reader.candidates(background, 0), heads(), 0)]) == 0


def entry(name: str, damage: float, noise_of_it: float | None) -> LayerSensitivity:
    return LayerSensitivity(
        layer=name, kind="dense", damage=damage, box_change=0.0, score_change=0.0, macs=1, noise=noise_of_it
    )


@pytest.mark.parametrize(
    ("found", "harms"),
    [
        ([entry("a", 0.1, 3e-4), entry("b", 0.2, 1e-4)], {"a": 3e-4, "b": 1e-4, "c": 2e-4}),
        ([entry("a", 0.1, 0.9), entry("b", 0.2, 0.8)], {"a": 0.01, "b": 0.04, "c": 0.025}),  # rows change places
        ([entry("a", 0.1, None), entry("b", 0.2, None)], {"a": 0.01, "b": 0.04, "c": 0.025}),
        ([], {"a": 0.0, "b": 0.0, "c": 0.0}),
    ],
)
def test_harm_of_layers(found: list[LayerSensitivity], harms: dict[str, float]) -> None:
    blank = Layer(name="a", kind="dense", input_name="x", output_name="y", weight=np.zeros((1, 1, 1, 1), np.float32))
    assert harm_of_layers(found, [replace(blank, name=name) for name in "abc"]) == pytest.approx(harms)
