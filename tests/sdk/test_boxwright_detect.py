"""The C++ SDK, built here: its example finds what the Python `Detector` finds in the same file."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from boxwright.core.decode_spec import AnchorDeltas, AnchorLevel, Distances, GridLevel, NmsSpec
from boxwright.core.preprocess import Preprocess
from boxwright.runtimes.detector import Detector
from models_for_tests import CLASS_NAMES, COLUMNS, HEIGHT, ROWS, STRIDE, WIDTH, colour_cells_manifest, save_colour_cells
from tolerances import SDK_BOXES, SDK_SCORES

openvino = pytest.importorskip("openvino")

SOURCE = Path(__file__).resolve().parents[2] / "sdk" / "cpp"
SIZE = (HEIGHT, WIDTH)
NMS = NmsSpec(class_agnostic=True, top_k_scope="class")
ANCHORS = AnchorDeltas(
    num_classes=len(CLASS_NAMES),
    levels=(
        AnchorLevel(
            grid_hw=(ROWS, COLUMNS),
            stride_hw=(float(STRIDE), float(STRIDE)),
            cell_boxes_xyxy=((-4.0, -3.0, 9.0, 10.0),),
            offset=0.5,
        ),
    ),
    box_weights=(10.0, 10.0, 5.0, 5.0),
    clip_to_image=True,
    max_detections=20,
    nms=NMS,
)
POINTS = Distances(
    num_classes=len(CLASS_NAMES),
    levels=(GridLevel(grid_hw=(ROWS, COLUMNS), stride=float(STRIDE), offset=0.5, step_hw=(STRIDE - 1.0, STRIDE + 0.5)),),
    nms=NMS,
)
MANIFESTS = {
    "as it is": colour_cells_manifest(),
    "letterbox": colour_cells_manifest(preprocess=Preprocess(size_hw=SIZE), score_threshold=0.1),
    "stretch": colour_cells_manifest(
        preprocess=Preprocess(size_hw=SIZE, resize="stretch", mean=(0.1, 0.0, -0.1), std=(0.9, 1.0, 1.1)),
        decode=ANCHORS,
    ),
    "shortest edge": colour_cells_manifest(
        preprocess=Preprocess(size_hw=SIZE, resize="shortest_edge", shortest_edge=40, max_size=60), decode=POINTS
    ),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`boxwright_detect`, built as docs/cpp.md says."""
    cmake = shutil.which("cmake")
    if cmake is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no CMake or no C++ compiler, so the SDK cannot be built here")
    build = tmp_path_factory.mktemp("sdk")
    engine = Path(openvino.__file__).parent / "cmake"
    configured = _run([cmake, "-S", str(SOURCE), "-B", str(build), f"-DOpenVINO_DIR={engine}"])
    for library in ("JPEG", "PNG"):
        if f"Could NOT find {library}" in configured.stderr:
            pytest.skip(f"no development files of {library}: apt install libjpeg-dev libpng-dev")
    assert configured.returncode == 0, configured.stderr
    built = _run([cmake, "--build", str(build), "--parallel", "2"])
    assert built.returncode == 0, built.stdout + built.stderr
    return build / "boxwright_detect"


@pytest.mark.parametrize("name", MANIFESTS)
def test_it_detects_what_python_detects(program: Path, tmp_path: Path, name: str) -> None:
    model = save_colour_cells(tmp_path / "m.onnx", manifest=MANIFESTS[name])
    picture = _picture(tmp_path / "picture.png", (71, 131))
    _check_same(program, model, picture, at_least=3)


@pytest.mark.parametrize("nms", ["none", "graph", "plugin"])
def test_it_detects_in_a_photo_what_python_detects(program: Path, shared_dir: Path, tmp_path: Path, nms: str) -> None:
    from boxwright.export import ExportOptions, export

    model = tmp_path / "m.onnx"
    export(
        shared_dir / "weights" / "yolox_nano_coco.onnx",
        model,
        head="yolox",
        labels="coco",
        preprocess="yolox-legacy",
        options=ExportOptions(nms=nms),  # type: ignore[arg-type]
    )
    photos = sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))
    for photo in photos[:3]:
        _check_same(program, model, photo, at_least=1 if photo == photos[0] else 0, runs_here=nms != "plugin")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.onnx", "picture.png"], "absent.onnx: expected a model file"),
        (["m.onnx", "absent.png"], "absent.png: expected an image file"),
        (["m.onnx", "m.onnx"], "expected a whole JPEG or PNG image"),
        (["m.onnx", "picture.png", "1.5"], r"score_threshold: expected a number in [0, 1], got 1.5"),
        (["m.onnx", "picture.png", "high"], "CONF: expected a number"),
        (["m.onnx", "thin.png"], "image: expected at least 2x2 pixels, got 40x1"),
        (["bare.onnx", "picture.png"], "expected a model with Boxwright's manifest"),
        (["cut.onnx", "picture.png"], "expected an intact ONNX file"),
        (["newer.onnx", "picture.png"], "manifest.schema_version: expected at most 1"),
        (["key.onnx", "picture.png"], "expected only known keys, got colour"),
        (["half.onnx", "picture.png"], "a JSON document"),
        (["none.onnx", "picture.png"], "DecodeNMS attribute max_detections: expected"),
    ],
)
def test_bad_input_is_one_line(program: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    text = colour_cells_manifest().to_json()
    manifests = {
        "m": text,
        "bare": "",
        "newer": json.dumps({**json.loads(text), "schema_version": 2}),
        "key": json.dumps({**json.loads(text), "colour": 1}),
        "half": text[: len(text) // 2],
        "none": text.replace('"max_detections": 5', '"max_detections": 0'),
    }
    for name, manifest in manifests.items():
        save_colour_cells(tmp_path / f"{name}.onnx", manifest=manifest)
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:-40])
    _picture(tmp_path / "picture.png", (30, 40))
    _picture(tmp_path / "thin.png", (1, 40))
    finished = _run([str(program), *arguments], cwd=tmp_path)
    assert finished.returncode == 2, finished
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert finished.stdout == ""


def _check_same(program: Path, model: Path, picture: Path, *, at_least: int, runs_here: bool = True) -> None:
    finished = _run([str(program), str(model), str(picture)])
    assert finished.returncode == 0, finished.stderr
    found: list[dict[str, Any]] = json.loads(finished.stdout)
    # Python needs its own plugin for the node; ONNX Runtime runs it without one.
    with Detector(model, backend="openvino" if runs_here else "onnxruntime") as detector:
        expected = detector(picture)
        names = [detector.class_names[class_id] for class_id in expected.class_ids]
    assert len(found) >= at_least
    assert [row["class_id"] for row in found] == expected.class_ids.tolist()
    assert [row["class_name"] for row in found] == names
    np.testing.assert_allclose([row["score"] for row in found], expected.scores, atol=SDK_SCORES)
    boxes = np.array([row["box_xyxy"] for row in found]).reshape(-1, 4)
    np.testing.assert_allclose(boxes, expected.boxes_xyxy, atol=SDK_BOXES)


def _picture(path: Path, size_hw: tuple[int, int]) -> Path:
    """A lossless picture of coloured patches."""
    patches = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(patches, size_hw[::-1], interpolation=cv2.INTER_NEAREST))
    return path


def _run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
