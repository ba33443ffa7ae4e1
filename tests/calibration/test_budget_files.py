"""What the manifest of a searched file says, and of which graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from boxwright.calibration import budget_files
from boxwright.calibration.agreement import Agreement
from boxwright.calibration.budget_images import SearchImages, read_images
from boxwright.calibration.candidate import Quantizer, observed_tensors
from boxwright.calibration.evaluation import Evaluation
from boxwright.calibration.executed import Executed
from boxwright.calibration.paired_map import PairedDifference
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.search_result import Trial
from boxwright.calibration.statistics import collect_statistics
from boxwright.calibration.variant import Variant
from boxwright.core.manifest import CalibrationRecord, Manifest
from boxwright.core.placement import rules_for
from boxwright.data.hashing import content_sha256
from colour_data import write_colour_data
from quantization_models import LAYERS, float_model, inputs

EVALUATION = Evaluation(
    agreement=Agreement(value=0.99, box_change=0.0, score_change=0.0),
    difference=PairedDifference(
        map_before=0.4, map_after=0.39, drop=0.01, standard_error=0.001, low=0.0, high=0.02, num_images=6
    ),
    latency_ms=2.0,
)
RECIPE = Recipe(
    rules=rules_for("openvino"),
    float_layers=frozenset({"thin", "deep"}),
    fine_layers=frozenset({"wide", "right", "deep", "left"}),
    finest_layers=frozenset({"left", "stem"}),
)


def record_of(
    folder: Path, images: SearchImages, monkeypatch: pytest.MonkeyPatch, asked: list[dict[str, Any]]
) -> CalibrationRecord:
    """Of a form whose rest is to run in BF16, with an engine that executes 70 % on integers, and one that hides it."""

    def executed(engine: str, proto: object, model: object, macs: object, **wishes: Any) -> Executed | None:
        asked.append({"engine": engine, **wishes})
        if engine == "tensorrt":
            return None
        return Executed(integer=frozenset(), in_float=frozenset(), int8_share=0.70001)

    monkeypatch.setattr(budget_files, "executed_layers", executed)
    model = float_model(folder)
    batches = (({"images": image}, 1, 0) for image in inputs(2))
    statistics = collect_statistics(model, batches, tensors=observed_tensors(model, fused=False))
    trial = Trial(
        variant=Variant(engine="openvino", precision="bf16", recipe=RECIPE), evaluation=EVALUATION, holds=True
    )
    quantizer = Quantizer(model, statistics)
    named = [(folder / "m.onnx", trial, ("openvino", "tensorrt"))]
    (file,) = budget_files.write_files(named, model, quantizer, statistics, images, [])
    assert file.int8_share == {"openvino": 0.70001}
    record = Manifest.from_json(file.manifest.to_json()).calibration
    assert record is not None
    return record


def test_layers_and_shares_are_those_of_the_form_as_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_colour_data(tmp_path / "colours", num_images=8)
    other = write_colour_data(tmp_path / "other", num_images=6, cell_pixels=9)
    images = read_images(data, "val", other, "val", None)
    asked: list[dict[str, Any]] = []
    record = record_of(tmp_path, images, monkeypatch, asked)
    assert asked == [{"engine": engine, "precision": "bf16"} for engine in ("openvino", "tensorrt")]
    assert record.int8_share == {"openvino": 0.7}
    assert record.layers_in_float == ("deep", "thin", *LAYERS[-2:])
    assert record.layers_run_twice == ("right", "wide")
    assert record.layers_run_three_times == ("stem", "left")
    assert record.data_sha256 == content_sha256(images.calibration)
    assert record.map_images_sha256 == content_sha256(images.choice) != record.data_sha256
