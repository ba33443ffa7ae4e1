"""A budget from the command line to the files: what is written, what it says, and what is refused."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from boxwright.calibration import calibrate
from boxwright.calibration.budget_calibration import BudgetError, calibrate_to_budget
from boxwright.cli.main import main
from boxwright.core.errors import DatasetError, InputError, UnsupportedError
from boxwright.core.manifest import METADATA_KEY, Manifest
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.model_file import inspect_onnx
from colour_data import write_colour_data
from colour_network import QUANTIZABLE, save_colour_network
from models_for_tests import colour_image

ENGINES = ("onnxruntime", "openvino")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_colour_network(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images, all different: with the colour data's own cells, each at another size."""
    root = write_colour_data(tmp_path_factory.mktemp("data") / "colours", num_images=20)
    for index, file in enumerate(sorted((root / "val2017").glob("*.png"))):
        picture = cv2.imread(str(file))
        picture[-1, -1 - index :] = 3  # a mark of a pixel or a few
        cv2.imwrite(str(file), picture)
    return root


@pytest.fixture(autouse=True)
def own_cache_and_short_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("boxwright.calibration.stopwatch._BLOCK_S", 0.002)  # no test hangs on a time


def arguments(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["calibrate", str(model), "--data", str(data), "--split", "val", "--out", str(out), *more]


def test_files_manifests_and_report(tmp_path: Path, model: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "files" / "m_int8.onnx"
    wishes = ["--max-drop", "2", "--engines", ",".join(ENGINES), "--json"]
    assert main(arguments(model, data, out, *wishes)) == 0
    document = json.loads(capfd.readouterr().out)
    assert document["holds"] is True
    served = sorted(engine for file in document["files"] for engine in file["engines"])
    assert served == sorted(ENGINES)
    for file in document["files"]:
        path = Path(file["path"])
        names = {out.name} if len(document["files"]) == 1 else {f"m_int8.{engine}.onnx" for engine in file["engines"]}
        assert path.parent == out.parent and path.name in names
        assert file["drop"] <= 2 and file["latency_ms"] > 0
        check_manifest(path)
        for engine in file["engines"]:
            with Detector(path, backend=engine, precision="int8") as detector:
                found = detector(colour_image((1, 1, "red"), (4, 6, "green")))
            assert sorted(found.class_ids.tolist()) == [1, 2]
    for search in document["searches"]:
        names = [candidate["name"] for candidate in search["candidates"]]
        for candidate in search["candidates"]:
            assert candidate["holds"] == (max(candidate["drop"], candidate["feared_drop"]) <= 2)
        assert "fp32" in names and sum(candidate["is_chosen"] for candidate in search["candidates"]) == 1
        assert sorted(entry["layer"] for entry in search["sensitivity"]) == sorted(QUANTIZABLE)
        assert all(entry["damage"] >= 0 and entry["macs"] > 0 for entry in search["sensitivity"])
        assert {step["what"] for step in search["steps"]} >= {"ranges", "cheap repairs"}
    report = out.parent / "m_int8_report"
    assert json.loads((report / "report.json").read_text())["files"] == document["files"]
    picture = cv2.imread(str(report / "search.png"))
    assert picture.shape[0] > 300 and len(np.unique(picture)) > 20


def check_manifest(path: Path) -> None:
    proto = onnx.load(path)
    text = next(entry.value for entry in proto.metadata_props if entry.key == METADATA_KEY)
    manifest = Manifest.from_json(text)
    record = manifest.calibration
    assert manifest.precision == "int8" and record is not None
    assert record.num_images == 20 and len(record.data_sha256) == 64
    assert record.map_before is not None and record.map_after is not None
    assert record.map_before == pytest.approx(1.0, abs=0.02)
    assert "20 images" in (record.map_images or "") and "4 folds" in (record.map_images or "")
    assert any(name.endswith(": fp32") for name in record.latency_ms or {})
    in_float = set(record.layers_in_float)
    quantized = {
        node.name.removesuffix("_fine_input").removesuffix("_fine_weight")
        for node in proto.graph.node
        if node.op_type == "Conv" and node.input[1] not in {tensor.name for tensor in proto.graph.initializer}
    }
    assert quantized == set(QUANTIZABLE) - in_float and quantized


def test_a_second_search_measures_nothing_again(tmp_path: Path, model: Path, data: Path) -> None:
    options = {"split": "val", "max_drop": 2.0, "engines": ("onnxruntime",)}
    first = calibrate_to_budget(model, data, tmp_path / "a.onnx", **options)  # type: ignore[arg-type]
    # With no time at all left, everything must come from what is kept.
    again = calibrate_to_budget(
        model,
        data,
        tmp_path / "b.onnx",
        **options,
        time_limit_minutes=1e-6,  # type: ignore[arg-type]
    )
    assert not again.searches[0].time_is_up
    assert again.files[0].trial.variant == first.files[0].trial.variant or again.holds
    assert [entry.damage for entry in again.searches[0].sensitivities] == [
        entry.damage for entry in first.searches[0].sensitivities
    ]
    with pytest.raises(BudgetError, match="time was up"):
        calibrate_to_budget(
            model,
            data,
            tmp_path / "c.onnx",
            **options,
            resume=False,
            time_limit_minutes=1e-6,  # type: ignore[arg-type]
        )
    assert not (tmp_path / "c.onnx").exists()


def test_other_images_to_choose_on_and_what_stops_nothing(
    tmp_path: Path, model: Path, data: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an image that cannot be read, nor a missing matplotlib, nor ONNX Runtime by another package's name."""

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)  # as beside onnxruntime-gpu
        return installed_version(name)

    installed_version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    other = write_colour_data(tmp_path / "other", num_images=7, cell_pixels=9)
    (other / "val2017" / "002.png").write_bytes(b"no image")
    wishes = ["--max-drop", "2", "--engines", "onnxruntime", "--val-data", str(other), "--json"]
    assert main(arguments(model, data, tmp_path / "m.onnx", *wishes)) == 3
    captured = capfd.readouterr()
    assert "matplotlib" in captured.err and "1 images could not be read" in captured.err
    document = json.loads(captured.out)
    (unreadable,) = document["unreadable"]
    assert "002.png" in unreadable
    assert (tmp_path / "m_report" / "report.json").is_file()
    record = Manifest.from_json(inspect_onnx(tmp_path / "m.onnx").metadata[METADATA_KEY], "m.onnx").calibration
    assert record is not None and "6 images of other val" in (record.map_images or "")


def test_a_budget_that_cannot_be_met(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("boxwright.calibration.budget._POINTS_ON_THE_AVERAGE", 1e9)
    folder = tmp_path / "files"
    wishes = ["--max-drop", "0.1", "--engines", "onnxruntime"]
    assert main(arguments(model, data, folder / "m.onnx", *wishes)) == 3
    error = capfd.readouterr().err
    assert "cannot be met" in error and "the best is 'int8" in error and "points" in error
    assert list(folder.iterdir()) == []
    assert main(arguments(model, data, folder / "m.onnx", *wishes, "--allow-worse")) == 3
    assert sorted(entry.name for entry in folder.iterdir()) == ["m.onnx", "m_report"]
    assert "written all the same" in capfd.readouterr().err


def blank(folder: Path) -> Path:
    root = write_colour_data(folder / "blank", num_images=9)
    for file in (root / "val2017").glob("*.png"):
        cv2.imwrite(str(file), np.zeros_like(cv2.imread(str(file))))
    return root


def no_images(folder: Path) -> Path:
    root = write_colour_data(folder / "none", num_images=9)
    document = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    document["images"], document["annotations"] = [], []
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
    return root


def unannotated(folder: Path) -> Path:
    root = write_colour_data(folder / "bare", num_images=12)
    document = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    document["annotations"] = []
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
    return root


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_images, "image"),
        (blank, "one colour"),
        (unannotated, "box"),
        (lambda folder: write_colour_data(folder / "few", num_images=5), "at least 8"),
    ],
    ids=["none", "all black", "no boxes", "too few to hold some back"],
)
def test_images_that_will_not_do(tmp_path: Path, model: Path, make: Callable[[Path], Path], message: str) -> None:
    folder = tmp_path / "files"
    with pytest.raises(DatasetError, match=message):
        calibrate_to_budget(model, make(tmp_path), folder / "m.onnx", split="val", max_drop=1.0)
    assert list(folder.iterdir()) == []


def test_an_image_in_both_sets_is_an_error_under_any_name(tmp_path: Path, model: Path, data: Path) -> None:
    other = write_colour_data(tmp_path / "other", num_images=6, cell_pixels=9)
    twin = sorted((data / "val2017").glob("*.png"))[3]
    (other / "val2017" / "002.png").write_bytes(twin.read_bytes())
    with pytest.raises(DatasetError, match=r"002\.png, which is also .*003\.png"):
        calibrate_to_budget(model, data, tmp_path / "m.onnx", split="val", val_data=other, max_drop=1.0)


def test_activations_that_are_not_finite(tmp_path: Path, data: Path) -> None:
    broken = save_colour_network(tmp_path / "broken.onnx", poison=float("nan"))
    with pytest.raises(InputError, match="NaN or infinity"):
        calibrate_to_budget(broken, data, tmp_path / "m.onnx", split="val", max_drop=1.0)


def test_a_model_that_is_quantized_already(tmp_path: Path, model: Path, data: Path) -> None:
    calibrate(model, data, tmp_path / "int8.onnx", split="val", measure=False)
    with pytest.raises(InputError, match="expected a float model"):
        calibrate_to_budget(tmp_path / "int8.onnx", data, tmp_path / "m.onnx", split="val", max_drop=1.0)


def test_fewer_than_16_images_give_a_warning_that_says_why(tmp_path: Path, model: Path) -> None:
    few = write_colour_data(tmp_path / "few", num_images=13)
    result = calibrate_to_budget(model, few, tmp_path / "m.onnx", split="val", max_drop=5.0, engines=("onnxruntime",))
    assert any("are few: ranges then hang on what these happen to show" in warning for warning in result.warnings)


def test_an_engine_that_is_not_here(tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from boxwright.runtimes import openvino

    monkeypatch.setattr(openvino, "available", lambda: "the package openvino is not installed")
    with pytest.raises(UnsupportedError, match="the package openvino is not installed"):
        calibrate_to_budget(model, data, tmp_path / "m.onnx", split="val", max_drop=1.0, engines=ENGINES)
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (["--max-drop", "0"], "points of mAP above 0"),
        (["--max-drop", "nan"], "points of mAP above 0"),
        (["--max-drop", "1", "--engines", "onnxruntime,nothing"], "names among"),
        (["--max-drop", "1", "--engines", "openvino,openvino"], "each once"),
        (["--max-drop", "1", "--time-limit", "0"], "minutes above 0"),
        (["--max-drop", "1", "--ranges", "mse"], "--ranges"),
        (["--max-drop", "1", "--no-measure"], "--no-measure"),
        (["--method", "search"], "expected a budget"),
        (["--engines", "openvino"], "--max-drop beside it"),
        (["--allow-worse"], "--max-drop beside it"),
    ],
)
def test_wishes_that_make_no_sense(
    tmp_path: Path, model: Path, data: Path, capfd: pytest.CaptureFixture[str], wishes: list[str], message: str
) -> None:
    assert main(arguments(model, data, tmp_path / "m.onnx", *wishes)) == 2
    captured = capfd.readouterr()
    assert message in captured.err and len(captured.err.strip().splitlines()) == 1
    assert not (tmp_path / "m.onnx").exists()
