"""What `calibrate --max-drop` leaves on the disk: never less than was there before, never half of what is new."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx
import pytest

from boxwright.calibration.report import check_report_writable, write_report
from boxwright.calibration.writing import write_models
from boxwright.cli.main import main
from boxwright.core.errors import MissingDependencyError, OutputError
from boxwright.core.manifest import METADATA_KEY, Manifest
from colour_data import write_colour_data
from colour_network import colour_network, save_colour_network
from models_for_tests import colour_cells_manifest

MANIFEST = colour_cells_manifest("raw")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_data(tmp_path_factory.mktemp("data") / "colours", num_images=16)


@pytest.fixture(autouse=True)
def own_cache_and_short_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("boxwright.calibration.stopwatch._BLOCK_S", 0.002)


def calibrate(model: Path, data: Path, *more: str) -> int:
    return main(["calibrate", str(model), "--data", str(data), "--split", "val", "--max-drop", "5", *more])


def not_to_be_reached(*_: object, **__: object) -> None:
    raise AssertionError("the work has begun")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def manifest_of(path: Path) -> Manifest:
    return Manifest.from_json(
        next(entry.value for entry in onnx.load(path).metadata_props if entry.key == METADATA_KEY)
    )


def test_the_report_leaves_what_its_folder_holds(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "r"
    (folder / "inner").mkdir(parents=True)
    (folder / "precious.txt").write_text("mine")
    (folder / "inner" / "other.txt").write_text("mine too")
    (folder / "report.json").write_text("of an earlier search")
    model = save_colour_network(tmp_path / "m.onnx")
    monkeypatch.chdir(folder)
    # The model itself is written into the folder, which is the present one.
    assert calibrate(model, data, "--out", "m_int8.onnx", "--report", ".", "--engines", "onnxruntime") == 0
    written = {entry.name for entry in folder.iterdir()}
    assert written == {"inner", "precious.txt", "report.json", "search.png", "m_int8.onnx"}
    assert (folder / "precious.txt").read_text() == "mine"
    assert (folder / "inner" / "other.txt").read_text() == "mine too"
    assert json.loads((folder / "report.json").read_text())["files"][0]["path"] == "m_int8.onnx"
    check_record(manifest_of(folder / "m_int8.onnx"))


def check_record(manifest: Manifest) -> None:
    record = manifest.calibration
    assert record is not None and record.int8_share is not None
    assert record.int8_share.keys() == {"onnxruntime"} and 0 <= record.int8_share["onnxruntime"] <= 1
    assert record.map_images_sha256 == record.data_sha256  # held back in turn
    assert record.layers_run_twice == record.layers_run_three_times == ()


@pytest.mark.parametrize("place", ["a file", "below a file", "report.json is a folder", "a model's own name"])
def test_a_report_that_cannot_be_written_is_refused_before_the_search(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    monkeypatch.setattr("boxwright.calibration.budget_calibration.load_float_model", not_to_be_reached)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "r" / "report.json").mkdir(parents=True)
    model = save_colour_network(tmp_path / "m.onnx")
    report = {
        "a file": tmp_path / "file",
        "below a file": tmp_path / "file" / "r",
        "report.json is a folder": tmp_path / "r",
        "a model's own name": tmp_path / "q.onnxruntime.onnx",
    }[place]
    before = files_below(tmp_path)
    engines = "onnxruntime,openvino"
    assert calibrate(model, data, "--out", str(tmp_path / "q.onnx"), "--report", str(report), "--engines", engines) == 2
    error = capfd.readouterr().err
    assert len(error.strip().splitlines()) == 1 and str(report) in error
    assert files_below(tmp_path) == before


def test_a_folder_for_the_report_is_not_made_before_there_is_one(tmp_path: Path) -> None:
    check_report_writable(tmp_path / "new" / "r")
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_numbers_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*_: object) -> None:
        raise MissingDependencyError("matplotlib", extra="bench", needed_for="drawing the search")

    monkeypatch.setattr("boxwright.calibration.report.report_document", lambda result: {"holds": True})
    monkeypatch.setattr("boxwright.calibration.report_plot.draw_search", draw)
    with pytest.raises(MissingDependencyError):
        write_report(None, tmp_path)  # type: ignore[arg-type]
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("obstacle", ["source", "link to the source", "folder"])
def test_no_name_that_a_file_may_get_is_the_source_or_a_folder(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], obstacle: str
) -> None:
    monkeypatch.setattr("boxwright.calibration.budget_calibration.load_float_model", not_to_be_reached)
    taken = tmp_path / "a.openvino.onnx"
    model = save_colour_network(taken if obstacle == "source" else tmp_path / "m.onnx")
    if obstacle == "link to the source":
        taken.symlink_to(model)
    if obstacle == "folder":
        taken.mkdir()
    before = files_below(tmp_path)
    assert calibrate(model, data, "--out", str(tmp_path / "a.onnx"), "--engines", "onnxruntime,openvino") == 2
    error = capfd.readouterr().err
    assert len(error.strip().splitlines()) == 1 and str(taken) in error
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("there_before", [True, False])
def test_of_several_models_all_are_written_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_before: bool
) -> None:
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    if there_before:
        for path in paths:
            path.write_bytes(b"before")
    proto, rename, renamed = colour_network(), os.replace, []

    def refuse_the_second(source: Path, target: Path) -> None:
        renamed.append(target)
        if len(renamed) == 2:
            raise PermissionError(1, "Operation not permitted")
        rename(source, target)

    before = files_below(tmp_path)
    monkeypatch.setattr(os, "replace", refuse_the_second)
    with pytest.raises(OutputError, match="Operation not permitted"):
        write_models([(proto, MANIFEST, path) for path in paths])
    assert len(renamed) >= 2
    assert files_below(tmp_path) == before
    monkeypatch.undo()
    write_models([(proto, MANIFEST, path) for path in paths])
    assert [manifest_of(path) for path in paths] == [MANIFEST, MANIFEST]
    assert len(files_below(tmp_path)) == 2


def test_a_cache_that_cannot_be_used_costs_a_warning_alone(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no_folder").write_text("mine")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no_folder"))
    model = save_colour_network(tmp_path / "m.onnx")
    out = tmp_path / "q.onnx"
    assert calibrate(model, data, "--out", str(out), "--engines", "onnxruntime") == 0
    warnings = [line for line in capfd.readouterr().err.splitlines() if "not kept" in line]
    assert len(warnings) == 1 and str(tmp_path / "no_folder") in warnings[0] and "Not a directory" in warnings[0]
    assert (tmp_path / "no_folder").read_text() == "mine"
