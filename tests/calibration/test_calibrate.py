"""`calibrate` without a budget, by our own ranges and by other tools."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from boxwright.calibration import calibrate
from boxwright.calibration.agreement import Agreement, compare_detections
from boxwright.calibration.choice import ChoiceSet
from boxwright.calibration.evaluation import Evaluation, Evaluator
from boxwright.calibration.ranges import RangeMethod
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.variant import Variant
from boxwright.cli.main import main
from boxwright.core.images import read_image
from boxwright.data import load_dataset
from boxwright.runtimes import openvino
from boxwright.runtimes.detector import Detector
from colour_data import write_colour_data
from colour_network import QUANTIZABLE, save_colour_network
from models_for_tests import colour_image


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_colour_network(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_colour_data(tmp_path_factory.mktemp("data") / "colours", num_images=16)
    for index, file in enumerate(sorted((root / "val2017").glob("*.png"))):
        picture = cv2.imread(str(file))
        picture[-1, -1 - index :] = 3  # a mark of a pixel or a few, so that no two are the same
        cv2.imwrite(str(file), picture)
    return root


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


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "tensorrt"])
@pytest.mark.parametrize(
    ("agreements", "wanted", "is_equalized"),
    [
        ((0.8, 0.7, 0.7), "percentile 99.99", False),
        ((0.6, 0.7, 0.6), "entropy", False),
        ((0.6, 0.7, 0.9), "entropy", True),
    ],
)
def test_without_a_wish_ranges_are_chosen_by_result(
    tmp_path: Path,
    model: Path,
    data: Path,
    engine: str,
    agreements: tuple[float, float, float],
    wanted: str,
    is_equalized: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Recipe] = []

    def evaluate(self: Evaluator, variant: Variant, choice: ChoiceSet, *, is_simulated: bool) -> Evaluation:
        assert len(choice.samples) == 12 and is_simulated == (engine == "tensorrt")
        assert variant.recipe is not None
        asked.append(variant.recipe)
        index = 2 if variant.recipe.equalizes else int(variant.recipe.method.kind == "entropy")
        return Evaluation(agreement=Agreement(value=agreements[index], box_change=0.0, score_change=0.0))

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    result = calibrate(model, data, tmp_path / "m_int8.onnx", split="val", engine=engine)
    record = result.manifest.calibration
    assert record is not None and record.method.startswith(wanted)
    assert ("equalized" in record.method) == (is_equalized and engine == "onnxruntime")
    assert any(recipe.equalizes for recipe in asked) == (engine == "onnxruntime")


def test_what_is_chosen_agrees_best(tmp_path: Path, model: Path, data: Path) -> None:
    """On the engine itself, without a stand-in: no other form agrees better on the images compared on."""
    found = {}
    samples = load_dataset(data, "val")
    for name, method in (("", None), ("percentile", RangeMethod()), ("entropy", RangeMethod(kind="entropy"))):
        path = tmp_path / f"m{name}.onnx"
        calibrate(model, data, path, split="val", engine="onnxruntime", method=method, measure=False)
        detections = []
        for file in (model, path):
            with Detector(file, backend="onnxruntime", conf=0.001) as detector:
                detections.append([detector(read_image(sample.image_path)) for sample in samples.samples])
        found[name] = compare_detections(*detections).value
    assert found[""] >= max(found["percentile"], found["entropy"])
    assert len(set(found.values())) > 1


@pytest.mark.parametrize(
    ("wishes", "method"),
    [
        (("--percentile", "99.5"), "percentile 99.5"),
        (("--ranges", "percentile"), "percentile 99.99"),
        (("--ranges", "mse"), "mse"),
    ],
)
def test_a_wish_for_ranges_is_kept(
    tmp_path: Path, model: Path, data: Path, capfd: pytest.CaptureFixture[str], wishes: tuple[str, ...], method: str
) -> None:
    assert run(model, data, tmp_path / "m_int8.onnx", "--engine", "onnxruntime", "--no-measure", *wishes) == 0
    found = json.loads(capfd.readouterr().out)["method"]
    assert found.startswith(method + ",") and "equalized" not in found


def test_an_engine_that_is_not_here_is_simulated(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def evaluate(self: Evaluator, variant: Variant, choice: ChoiceSet, *, is_simulated: bool) -> Evaluation:
        assert is_simulated
        asked.append(len(choice.samples))
        return Evaluation(agreement=Agreement(value=0.5, box_change=0.0, score_change=0.0))

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    monkeypatch.setattr("boxwright.calibration.plain._NUM_IMAGES", 5)
    monkeypatch.setattr("boxwright.calibration.plain.engine_to_measure", lambda engine: "onnxruntime")
    told: list[tuple[str, int, int]] = []
    out = tmp_path / "m_int8.onnx"
    calibrate(model, data, out, split="val", measure=False, on_progress=lambda *entry: told.append(entry))
    assert asked == [5, 5]
    assert [entry for entry in told if entry[0] == "choosing ranges"] == [("choosing ranges", n, 2) for n in range(3)]


def test_a_cache_for_tensorrts_calibrator(
    tmp_path: Path, model: Path, data: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boxwright.calibration.held_back.engine_to_measure", lambda engine: engine)
    assert run(model, data, tmp_path / "m_int8.onnx", "--method", "trt-cache") == 0
    document = json.loads(capfd.readouterr().out)
    # A part is held back, on which an emulation tells what the ranges cost; ONNX Runtime's, whatever is installed.
    assert document["num_images"] == 12 and document["num_quantized"] is None
    assert document["map_before"] == 1 and document["map_after"] > 0.95
    where = "emulated on onnxruntime with every layer in INT8"
    assert document["map_images"] == f"4 held-back images of colours val, {where}"
    assert not any("mAP" in warning for warning in document["warnings"])
    path = Path(document["path"])
    assert path.suffix == ".calib" and path.read_text().splitlines()[0].startswith("TRT-")
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("wishes", [("--no-measure",), ("--method", "nncf"), ("--max-drop", "2")])
@pytest.mark.parametrize("where", ["blend.weight", "classes.bias"])
def test_nan_in_what_predicts_is_an_error(
    tmp_path: Path, model: Path, data: Path, capfd: pytest.CaptureFixture[str], where: str, wishes: tuple[str, ...]
) -> None:
    if "nncf" in wishes:
        pytest.importorskip("nncf")
    proto = onnx.load(model)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == where)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[0] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, where))
    onnx.save(proto, tmp_path / "nan.onnx")
    assert run(tmp_path / "nan.onnx", data, tmp_path / "out" / "m_int8.onnx", *wishes) == 2
    assert "expected finite numbers in the float model" in capfd.readouterr().err
    assert not list(tmp_path.glob("out/*"))


def test_no_image_is_both_calibrated_on_and_measured_on(
    tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = write_colour_data(tmp_path / "twice", num_images=24)
    files = sorted((data / "val2017").glob("*.png"))
    different = len({file.read_bytes() for file in files})
    assert different < len(files)
    assert run(model, data, tmp_path / "m_int8.onnx") == 0
    document = json.loads(capfd.readouterr().out)
    num_held_back = int(document["map_images"].split()[0])
    assert document["num_images"] + num_held_back == different


def test_what_measuring_needs_is_missed_before_the_work(
    tmp_path: Path, model: Path, data: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert run(model, data, tmp_path / "m_int8.onnx") == 2
    (line,) = capfd.readouterr().err.strip().splitlines()  # nor has a bar been drawn
    assert "faster-coco-eval" in line and "boxwright[int8]" in line and "--no-measure" in line
    assert not list(tmp_path.glob("*.onnx"))
    assert run(model, data, tmp_path / "m_int8.onnx", "--no-measure") == 0


def test_what_nncf_makes_for_openvino_needs_openvino_to_measure(
    tmp_path: Path, model: Path, data: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "available", lambda: "the package openvino is not installed")
    assert run(model, data, tmp_path / "m_int8.onnx", "--method", "nncf") == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "boxwright[openvino]" in line and "--no-measure" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wishes", "name"),
    [
        (("--method", "nncf", "--ranges", "mse"), "--ranges"),
        (("--method", "trt-cache", "--engine", "openvino"), "--method trt-cache"),
        (("--ranges", "minmax", "--percentile", "99.9"), "--percentile"),
        (("--val-split", "val"), "--val-split"),
        (("--no-resume",), "--no-resume"),
        (("--num-threads", "2"), "--num-threads"),
        (("--engines", "onnxruntime"), "--engines"),
        (("--max-drop", "1", "--val-split", "val"), "--val-split"),
        (("--max-drop", "1", "--engines", ""), "--engines"),
    ],
)
def test_a_wish_that_would_be_ignored_is_refused(
    tmp_path: Path,
    model: Path,
    data: Path,
    capfd: pytest.CaptureFixture[str],
    wishes: tuple[str, ...],
    name: str,
) -> None:
    assert run(model, data, tmp_path / "m.onnx", *wishes) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith(f"boxwright: {name}:")
    assert not list(tmp_path.iterdir())
