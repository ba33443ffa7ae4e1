"""`calibrate` without a budget, by our own ranges and by other tools."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boxwright.cli.main import main
from boxwright.runtimes.detector import Detector
from colour_data import write_colour_data
from colour_network import QUANTIZABLE, save_colour_network
from models_for_tests import colour_image


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_colour_network(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_colour_data(tmp_path_factory.mktemp("data") / "colours", num_images=16)


def run(model: Path, data: Path, out: Path, *more: str) -> int:
    return main(["calibrate", str(model), "--data", str(data), "--split", "val", "--out", str(out), "--json", *more])


@pytest.mark.parametrize(
    "wishes", [(), ("--method", "plain", "--ranges", "mse"), ("--method", "nncf", "--engine", "onnxruntime")]
)
def test_a_file_and_what_it_cost(
    tmp_path: Path, model: Path, data: Path, capfd: pytest.CaptureFixture[str], wishes: tuple[str, ...]
) -> None:
    if "nncf" in wishes:
        pytest.importorskip("nncf")
    out = tmp_path / "m_int8.onnx"
    assert run(model, data, out, *wishes) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["map_before"] == pytest.approx(1.0, abs=0.02)
    assert document["map_after"] == pytest.approx(1.0, abs=0.05)
    assert document["num_images"] == 12 and "4 held-back images" in document["map_images"]
    assert document["num_quantized"] == len(QUANTIZABLE)
    assert not any("finds next to nothing" in warning for warning in document["warnings"])
    assert ("NNCF" in document["method"]) == ("nncf" in wishes)
    with Detector(out, backend="onnxruntime", precision="int8") as detector:
        assert detector(colour_image((1, 1, "red"))).class_ids.tolist() == [2]


@pytest.mark.parametrize("wishes", [(), ("--max-drop", "1", "--engines", "onnxruntime")])
def test_a_float_model_that_finds_nothing_gives_a_warning(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str], wishes: tuple[str, ...]
) -> None:
    data = write_colour_data(tmp_path / "colours", num_images=20)
    labels = data / "annotations" / "instances_val2017.json"
    document = json.loads(labels.read_text())
    for annotation in document["annotations"]:
        annotation["category_id"] = annotation["category_id"] % 3 + 1
    labels.write_text(json.dumps(document))
    assert run(model, data, tmp_path / "m_int8.onnx", *wishes) == 0
    warnings = json.loads(capfd.readouterr().out)["warnings"]
    (warning,) = [warning for warning in warnings if "finds next to nothing" in warning]
    assert "(mAP 0.0000)" in warning and "--preprocess and --labels" in warning


def test_a_cache_for_tensorrts_calibrator(
    tmp_path: Path, model: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(model, data, tmp_path / "m_int8.onnx", "--method", "trt-cache", "--no-measure") == 0
    document = json.loads(capfd.readouterr().out)
    path = Path(document["path"])
    assert path.suffix == ".calib" and path.read_text().splitlines()[0].startswith("TRT-")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_ranges_are_not_for_other_tools(
    tmp_path: Path, model: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(model, data, tmp_path / "m.onnx", "--method", "nncf", "--ranges", "mse") == 2
    assert "--ranges" in capfd.readouterr().err
