"""LoadGen on several candidates: what becomes of one that does not fit, and going on after an interruption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from boxwright.bench import scenario_run
from boxwright.bench.candidate import Candidate
from boxwright.bench.observer import Observer
from boxwright.bench.results import Settings
from boxwright.bench.scenario_run import RESULTS_FILE, ScenarioResult, run_scenarios
from boxwright.bench.scenarios import ScenarioSettings
from boxwright.core.errors import DatasetError
from boxwright.data import Dataset, load_dataset
from colour_data import write_colour_data
from models_for_tests import save_colour_cells

OFFLINE = ScenarioSettings(scenario="offline", duration_s=0.1)


class Notes(Observer):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(write_colour_data(tmp_path / "data"), "val")


@pytest.fixture
def candidates(tmp_path: Path) -> list[Candidate]:
    return [Candidate(model=str(save_colour_cells(tmp_path / f"{name}.onnx", "raw"))) for name in "abc"]


def test_goes_on_with_the_candidates_that_are_missing(
    tmp_path: Path, dataset: Dataset, candidates: list[Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def run_candidate(candidate: Candidate, *_: object) -> ScenarioResult:
        asked.append(candidate.name)
        if asked == ["a.onnx", "b.onnx"]:
            raise KeyboardInterrupt
        return replace(scenario_run._row_of(candidate, tmp_path, OFFLINE), is_valid=True, metric=float(len(asked)))

    monkeypatch.setattr(scenario_run, "_run_candidate", run_candidate)
    notes = Notes()
    with pytest.raises(KeyboardInterrupt):
        run_scenarios(candidates, dataset, tmp_path / "out", scenario=OFFLINE, observer=notes)
    first = json.loads((tmp_path / "out" / RESULTS_FILE).read_text())
    assert [row["name"] for row in first["scenarios"]] == ["a.onnx"] and not first["is_complete"]
    results = run_scenarios(candidates, dataset, tmp_path / "out", scenario=OFFLINE, observer=notes)
    assert [row.name for row in results] == ["a.onnx", "b.onnx", "c.onnx"]
    assert results[0].metric == 1.0 and asked == ["a.onnx", "b.onnx", "b.onnx", "c.onnx"]
    assert notes.texts == [
        "the candidates that are measured are kept: the same command goes on with the next one",
        "going on with an interrupted run: 1 of 3 candidates are measured",
    ]
    asked.clear()
    run_scenarios(candidates[:1], dataset, tmp_path / "out", scenario=OFFLINE)  # another run
    run_scenarios(candidates[:1], dataset, tmp_path / "out", scenario=OFFLINE)  # a complete one is measured again
    assert asked == ["a.onnx", "a.onnx"]


def test_of_several_candidates_one_with_other_classes_fails_alone(
    tmp_path: Path, dataset: Dataset, candidates: list[Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_candidate(candidate: Candidate, *_: object) -> ScenarioResult:
        if candidate.name == "a.onnx":
            raise DatasetError("class names", expected="those of the model", got="others", fix="mend them")
        return scenario_run._row_of(candidate, tmp_path, OFFLINE)

    monkeypatch.setattr(scenario_run, "_run_candidate", run_candidate)
    results = run_scenarios(candidates, dataset, tmp_path / "out", scenario=OFFLINE, settings=Settings())
    assert [row.status for row in results] == ["failed", "measured", "measured"]
    assert "class names" in (results[0].reason or "")
    with pytest.raises(DatasetError, match="class names"):
        run_scenarios(candidates[:1], dataset, tmp_path / "out", scenario=OFFLINE)
