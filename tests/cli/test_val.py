"""`boxwright val` from the command line to its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boxwright.cli.main import main
from colour_data import write_colour_data
from models_for_tests import colour_cells_manifest, save_colour_cells


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_data(tmp_path_factory.mktemp("data") / "colours")


@pytest.mark.parametrize(
    ("file", "stage", "backend"),
    [
        ("m.onnx", "raw", "onnxruntime"),
        ("m.onnx", "detections", "onnxruntime"),
        ("m_openvino_model", "detections", "openvino"),
    ],
)
def test_json_of_every_kind_of_file(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str], file: str, stage: str, backend: str
) -> None:
    model = save_colour_cells(tmp_path / file, stage)
    assert main(["val", str(model), "--data", str(data), "--split", "val", "--iou", "0.65", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["map"] == pytest.approx(1.0, abs=0.02)
    assert (report["backend"], report["precision"], report["device"]) == (backend, "fp32", "cpu")
    assert (report["conf"], report["iou"]) == (0.001, 0.65)
    assert (report["num_images"], report["num_boxes"], report["num_detections"]) == (6, 7, 7)
    assert [row["name"] for row in report["per_class"]] == ["blue", "green", "red"]
    assert report["unreadable"] == []


def test_a_table_for_people(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = save_colour_cells(tmp_path / "m.onnx", "raw")
    assert main(["val", str(model), "--data", str(data)]) == 0
    text = capfd.readouterr().out
    assert "AP50" in text and "green" in text and "PASCAL VOC" in text


def test_some_of_the_classes(tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A model that knows green alone: refused on all classes, right on its own."""
    manifest = colour_cells_manifest(class_names=("violet", "green", "orange"))
    model = str(save_colour_cells(tmp_path / "m.onnx", "raw", manifest=manifest))
    assert main(["val", model, "--data", str(data)]) == 2
    error = capfd.readouterr().err
    assert "--classes" in error and "--labels NAME" not in error
    assert main(["val", model, "--data", str(data), "--classes", "green", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["map"] == pytest.approx(1.0, abs=0.02) and report["num_images"] == 6
    assert [row["name"] for row in report["per_class"]] == ["green"]
    assert report["ignored_classes"] == ["violet", "orange"] and 0 < report["num_boxes"] < 7
    for names, got in (("green,mauve", "mauve"), ("", "none")):
        assert main(["val", model, "--data", str(data), "--classes", names]) == 2
        assert f"expected names among blue, green, red, got {got}" in capfd.readouterr().err


def test_the_score_threshold_changes_what_is_counted(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = save_colour_cells(tmp_path / "m.onnx", "detections")
    assert main(["val", str(model), "--data", str(data), "--conf", "1", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["map"], report["num_detections"]) == (0.0, 0)


def test_images_that_cannot_be_read_give_status_3(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = write_colour_data(tmp_path / "data")
    for name in ("001.png", "002.png"):
        path = root / "val2017" / name
        path.write_bytes(path.read_bytes()[:-20])
    model = save_colour_cells(tmp_path / "m.onnx", "raw")
    assert main(["val", str(model), "--data", str(root), "--json"]) == 3
    captured = capfd.readouterr()
    report = json.loads(captured.out)
    assert report["num_images"] == 4
    assert [row["file"] for row in report["unreadable"]] == ["val2017/001.png", "val2017/002.png"]
    last_line = captured.err.strip().splitlines()[-1]
    assert last_line.startswith("boxwright: 2 of 6 images could not be read and are left out: val2017/001.png (")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "test"], "test"),
        (["--backend", "nonesuch"], "backend 'nonesuch'"),
        (["--precision", "bf16"], "got 'bf16'"),
        (["--model", "yolox-nano"], "leave these options out"),
        (["--imgsz", "big"], "--imgsz"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, data: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    model = save_colour_cells(tmp_path / "m.onnx", "raw")
    assert main(["val", str(model), "--data", str(data), *arguments]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert message in captured.err and captured.err.strip().count("\n") == 0


def test_the_measured_accuracy_of_known_weights(shared_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What an independent program measured on the same weights and images: AP 0.3072, AP50 0.4628."""
    from tolerances import REFERENCE_MAP

    weights = shared_dir / "weights" / "yolox_nano_coco.pth"
    arguments = ["val", str(weights), "--model", "yolox-nano", "--preprocess", "yolox-legacy", "--labels", "coco"]
    assert main([*arguments, "--data", str(shared_dir / "data" / "coco-tiny"), "--iou", "0.65", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["map"] == pytest.approx(0.3072, abs=REFERENCE_MAP)
    assert report["map50"] == pytest.approx(0.4628, abs=REFERENCE_MAP)
    assert report["backend"] == "torch"
