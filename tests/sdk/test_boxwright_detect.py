"""The C++ SDK, built here: its example finds what the Python `Detector` finds in the same file."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from boxwright.calibration.candidate import Quantizer, observed_tensors
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.statistics import collect_statistics
from boxwright.calibration.writing import write_model
from boxwright.core.decode_spec import AnchorDeltas, AnchorLevel, Distances, GridLevel, NmsSpec
from boxwright.core.errors import UnsupportedError
from boxwright.core.images import read_image
from boxwright.core.manifest import CalibrationRecord
from boxwright.core.placement import rules_for
from boxwright.core.preprocess import Preprocess
from boxwright.export.thresholds import make_constant
from boxwright.runtimes.backend import open_backend
from boxwright.runtimes.detector import Detector
from models_for_tests import CLASS_NAMES, COLUMNS, HEIGHT, ROWS, STRIDE, WIDTH, colour_cells_manifest, save_colour_cells
from quantization_models import float_model, inputs
from tolerances import SDK_BOXES, SDK_SCORES

openvino = pytest.importorskip("openvino")
pytestmark = pytest.mark.xdist_group("boxwright_detect")  # compiled once

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
    levels=(
        GridLevel(grid_hw=(ROWS, COLUMNS), stride=float(STRIDE), offset=0.5, step_hw=(STRIDE - 1.0, STRIDE + 0.5)),
    ),
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
CALIBRATED = colour_cells_manifest(
    precision="int8",
    calibration=CalibrationRecord(
        method="percentile 99.99",
        data_sha256="ab",
        num_images=80,
        layers_run_twice=("a",),
        int8_share={"openvino": 0.9},
        map_images_sha256="cd",
        latency_ms={"fp32": 1.5},
    ),
)
MANIFESTS["calibrated"] = CALIBRATED

ENGINES = ("openvino", "onnxruntime")


@dataclass(frozen=True)
class Program:
    """The built example, and the engines that it has."""

    path: Path
    engines: tuple[str, ...]

    def needs(self, engine: str) -> None:
        if engine not in self.engines:
            pytest.skip("no headers of ONNX Runtime: apt install libonnxruntime-dev, or set ONNXRUNTIME_ROOT")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """`boxwright_detect`, built as docs/cpp.md says."""
    cmake = shutil.which("cmake")
    if cmake is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no CMake or no C++ compiler, so the SDK cannot be built here")
    build = tmp_path_factory.mktemp("sdk")
    configured = _run([cmake, "-S", str(SOURCE), "-B", str(build), f"-DPython3_EXECUTABLE={sys.executable}"])
    for library in ("JPEG", "PNG"):
        if f"Could NOT find {library}" in configured.stderr:
            pytest.skip(f"no development files of {library}: apt install libjpeg-dev libpng-dev")
    assert configured.returncode == 0, configured.stderr
    built = _run([cmake, "--build", str(build), "--parallel", "2"])
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warning:" not in built.stderr
    named = {"openvino": "on OpenVINO", "onnxruntime": "on ONNX Runtime"}
    return Program(build / "boxwright_detect", tuple(name for name in ENGINES if named[name] in configured.stdout))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", MANIFESTS)
def test_it_detects_what_python_detects(program: Program, tmp_path: Path, name: str, engine: str) -> None:
    model = save_colour_cells(tmp_path / "m.onnx", manifest=MANIFESTS[name])
    picture = _picture(tmp_path / "picture.png", (71, 131))
    _check_same(program, model, picture, engine=engine, at_least=3)


FORMS = ("none", "graph", "plugin", "graph of pixels", "none of pixels")


@pytest.fixture(scope="module")
def exported(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """YOLOX-nano in every form."""
    from boxwright.export import ExportOptions, export

    folder = tmp_path_factory.mktemp("forms")
    models = {}
    for form in FORMS:
        nms, _, pixels = form.partition(" of ")
        models[form] = export(
            shared_dir / "weights" / "yolox_nano_coco.onnx",
            folder / f"{form}.onnx",
            head="yolox",
            labels="coco",
            preprocess="yolox-legacy",
            options=ExportOptions(nms=nms, embed_preprocess=bool(pixels)),  # type: ignore[arg-type]
        ).path
    return models


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", FORMS)
def test_it_detects_in_a_photo_what_python_detects(
    program: Program, shared_dir: Path, exported: dict[str, Path], form: str, engine: str
) -> None:
    photos = sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))
    for photo in photos[:3]:
        _check_same(program, exported[form], photo, engine=engine, at_least=1 if photo == photos[0] else 0)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_is_turned_by_its_exif_orientation(program: Program, tmp_path: Path, suffix: str) -> None:
    model = save_colour_cells(tmp_path / "m.onnx", manifest=MANIFESTS["letterbox"])
    stored = _picture(tmp_path / f"stored{suffix}", (56, 96), patch=16).read_bytes()
    answers = set()
    for orientation in range(1, 9):
        picture = tmp_path / f"turned{suffix}"
        picture.write_bytes(_with_orientation(stored, orientation, "<>"[orientation // 2 % 2]))
        assert read_image(picture).shape == ((96, 56, 3) if orientation >= 5 else (56, 96, 3))
        answers.add(_check_same(program, model, picture, engine=program.engines[0], at_least=3))
    assert len(answers) == 8


def test_an_orientation_that_leads_nowhere_is_none(program: Program, tmp_path: Path) -> None:
    model = save_colour_cells(tmp_path / "m.onnx", manifest=MANIFESTS["letterbox"])
    stored = _picture(tmp_path / "stored.jpg", (56, 96), patch=16).read_bytes()
    whole = _with_orientation(stored, 6, "<")
    start = whole.index(b"Exif") + 6
    for damage in (b"XX", b"II*\0\xff\xff\xff\x7f", b"II*\0\x08\0\0\0\xff\xff"):
        picture = tmp_path / "damaged.jpg"
        picture.write_bytes(whole[:start] + damage + b"\0" * (26 - len(damage)) + whole[start + 26 :])
        _check_same(program, model, picture, engine="openvino", at_least=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.onnx", "picture.png"], "absent.onnx: expected a model file"),
        (["m.onnx", "absent.png"], "absent.png: expected an image file"),
        (["m.onnx", "m.onnx"], "expected a whole JPEG or PNG image"),
        (["m.onnx", "folder"], "folder: expected an image file"),
        (["m.onnx", "claims.jpg"], "expected a whole JPEG or PNG image of at most 2^30 pixels"),
        (["folder.onnx", "picture.png"], "folder.onnx: expected a model file"),
        (["m.onnx", "picture.png", "1.5"], r"score_threshold: expected a number in [0, 1], got 1.5"),
        (["m.onnx", "picture.png", "high"], "CONF: expected a number"),
        (["m.onnx", "thin.png"], "image: expected at least 2x2 pixels, got 40x1"),
        (["bare.onnx", "picture.png"], "expected a model with Boxwright's manifest"),
        (["cut.onnx", "picture.png"], "expected an intact ONNX file"),
        (["newer.onnx", "picture.png"], "manifest.schema_version: expected at most 1"),
        (["key.onnx", "picture.png"], "expected only known keys, got colour"),
        (["half.onnx", "picture.png"], "a JSON document"),
        (["none.onnx", "picture.png"], "DecodeNMS attribute max_detections: expected"),
        (["m.onnx", "picture.png", "-0.1"], r"score_threshold: expected a number in [0, 1], got -0.1"),
        (["m.onnx", "picture.png", "nan"], r"score_threshold: expected a number in [0, 1], got nan"),
        (["iou.onnx", "picture.png"], r"iou_threshold: expected a number in [0, 1], got 2.0"),
        (["coding.onnx", "picture.png"], "manifest.decode.box_coding: expected a known name, got polar"),
        (["stage.onnx", "picture.png"], "manifest.stage: expected raw or boxes or detections, got half"),
        (["kind.onnx", "picture.png"], "manifest.input_kind: expected tensor or pixels, got words"),
        (["pixels.onnx", "picture.png"], "expected an input images (1, ?, ?, 3) of bytes, got (1, 3, 48, 64)"),
        (["grid.onnx", "picture.png"], "expected the output class_logits of shape (1, 54, 3), got (1, 48, 3)"),
        (["names.onnx", "picture.png"], "manifest.class_names: expected 3 names, got 2"),
        (["m.onnx", "picture.png", "0.5", "abacus"], "engine: expected openvino"),
        (["m.xml", "picture.png", "0.5", "openvino"], "m.xml: expected a model file"),
    ],
)
def test_bad_input_is_one_line(program: Program, tmp_path: Path, arguments: list[str], message: str) -> None:
    text = colour_cells_manifest().to_json()
    known = json.loads(text)
    manifests = {
        "m": text,
        "bare": "",
        "newer": json.dumps({**json.loads(text), "schema_version": 2}),
        "key": json.dumps({**json.loads(text), "colour": 1}),
        "half": text[: len(text) // 2],
        "none": text.replace('"max_detections": 5', '"max_detections": 0'),
        "iou": json.dumps({**known, "iou_threshold": 2.0}),
        "coding": text.replace('"yolox"', '"polar"'),
        "stage": json.dumps({**known, "stage": "half"}),
        "kind": json.dumps({**known, "input_kind": "words"}),
        "pixels": json.dumps({**known, "input_kind": "pixels"}),
        "grid": text.replace(f'"grid_hw": [{ROWS}, {COLUMNS}]', f'"grid_hw": [{ROWS}, {COLUMNS + 1}]'),
        "names": json.dumps({**known, "class_names": known["class_names"][:2]}),
    }
    for name, manifest in manifests.items():
        save_colour_cells(tmp_path / f"{name}.onnx", manifest=manifest)
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "m.onnx").read_bytes()[:-40])
    _picture(tmp_path / "picture.png", (30, 40))
    _picture(tmp_path / "thin.png", (1, 40))
    for name in ("folder", "folder.onnx"):
        (tmp_path / name).mkdir()
    small = _picture(tmp_path / "claims.jpg", (30, 40)).read_bytes()
    sizes = [struct.pack(">HH", *size_hw) for size_hw in ((30, 40), (65500, 65500))]
    (tmp_path / "claims.jpg").write_bytes(small.replace(*sizes, 1))
    engines = program.engines if len(arguments) == 2 else ("",)
    for engine in engines:
        given = [*arguments, "", engine] if engine else arguments
        finished = _run([str(program.path), *given], cwd=tmp_path)
        assert finished.returncode == 2, finished
        assert message in finished.stderr
        assert finished.stderr.count("\n") == 1
        assert finished.stdout == ""


def test_a_node_that_openvino_refuses_is_named(program: Program, exported: dict[str, Path], tmp_path: Path) -> None:
    model = onnx.load(exported["plugin"])
    (node,) = [node for node in model.graph.node if node.op_type == "DecodeNMS"]
    (coding,) = [attribute for attribute in node.attribute if attribute.name == "box_coding"]
    coding.s = b"polar"
    onnx.save(model, tmp_path / "m.onnx")
    _picture(tmp_path / "picture.png", (30, 40))
    finished = _run([str(program.path), "m.onnx", "picture.png", "", "openvino"], cwd=tmp_path)
    assert finished.returncode == 2
    assert finished.stderr == (
        "boxwright_detect: DecodeNMS attribute box_coding: expected a known name, got polar; correct the attribute\n"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_a_threshold_that_is_built_in_cannot_be_another(
    program: Program, exported: dict[str, Path], tmp_path: Path, engine: str
) -> None:
    program.needs(engine)
    model = ir.load(exported["graph"])
    make_constant(model, "m.onnx")
    ir.save(model, tmp_path / "m.onnx")
    picture = _picture(tmp_path / "picture.png", (71, 131))
    known = json.loads(model.metadata_props["boxwright.manifest"])
    score, iou = known["score_threshold"], known["iou_threshold"]

    def detect(conf: str, iou: str) -> subprocess.CompletedProcess[str]:
        return _run([str(program.path), "m.onnx", str(picture), conf, engine, iou], cwd=tmp_path)

    for conf in ("", str(score), str(score + 0.1)):
        assert detect(conf, str(iou)).returncode == 0
    for conf, wished_iou, name in ((str(score / 2), "", "score_threshold"), ("", str(iou + 0.1), "iou_threshold")):
        finished = detect(conf, wished_iou)
        assert finished.returncode == 2
        assert f"m.onnx: expected a model whose {name} can be set, got one with a built-in {name} of" in finished.stderr
        assert finished.stderr.count("\n") == 1


def test_what_openvino_computes_wrongly_is_refused(program: Program, tmp_path: Path) -> None:
    """Files for TensorRT have int8 activations around concatenations; those for OpenVINO have uint8."""
    program.needs("openvino")
    _picture(tmp_path / "picture.png", (48, 64))
    float_file = float_model(tmp_path)
    images: list[tuple[dict[str, Any], int, int]] = [({"images": image}, 1, 0) for image in inputs(4)]
    for engine in ("tensorrt", "openvino"):
        recipe = Recipe(rules=rules_for(engine))
        statistics = collect_statistics(float_file, images, tensors=observed_tensors(float_file, fused=False))
        write_model(Quantizer(float_file, statistics).build(recipe), float_file.manifest, tmp_path / f"{engine}.onnx")
    for backend, file, status in (("openvino", "tensorrt", 2), ("openvino", "openvino", 0)):
        finished = _run([str(program.path), f"{file}.onnx", "picture.png", "", backend], cwd=tmp_path)
        assert finished.returncode == status, finished.stderr
    finished = _run([str(program.path), "tensorrt.onnx", "picture.png", "", "openvino"], cwd=tmp_path)
    with pytest.raises(UnsupportedError) as refused:
        open_backend(tmp_path / "tensorrt.onnx", backend="openvino")
    assert "got int8 around 'both', which OpenVINO" in str(refused.value)
    assert "tensorrt.onnx: expected activations in uint8 around concatenations" in finished.stderr
    assert "got int8 around both, which this OpenVINO computes wrongly" in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_what_onnx_runtime_cannot_open_is_one_line(program: Program, tmp_path: Path) -> None:
    program.needs("onnxruntime")
    _picture(tmp_path / "picture.png", (30, 40))
    (tmp_path / "m.xml").write_text("<net></net>")
    finished = _run([str(program.path), "m.xml", "picture.png", "", "onnxruntime"], cwd=tmp_path)
    assert finished.returncode == 2
    assert "m.xml: expected an ONNX file for ONNX Runtime" in finished.stderr


def _check_same(program: Program, model: Path, picture: Path, *, engine: str, at_least: int) -> str:
    """What the program prints, once it is known to be right."""
    program.needs(engine)
    finished = _run([str(program.path), str(model), str(picture), "", engine])
    assert finished.returncode == 0, finished.stderr
    found: list[dict[str, Any]] = json.loads(finished.stdout)
    # OpenVINO in Python needs its own plugin for the node; ONNX Runtime runs it without one.
    has_node = b"DecodeNMS" in model.read_bytes()
    with Detector(model, backend="onnxruntime" if has_node else engine) as detector:
        expected = detector(picture)
        names = [detector.class_names[class_id] for class_id in expected.class_ids]
    assert len(found) >= at_least
    assert [row["class_id"] for row in found] == expected.class_ids.tolist()
    assert [row["class_name"] for row in found] == names
    np.testing.assert_allclose([row["score"] for row in found], expected.scores, atol=SDK_SCORES)
    boxes = np.array([row["box_xyxy"] for row in found]).reshape(-1, 4)
    np.testing.assert_allclose(boxes, expected.boxes_xyxy, atol=SDK_BOXES)
    return finished.stdout


def _picture(path: Path, size_hw: tuple[int, int], patch: int | None = None) -> Path:
    """A picture of coloured patches, 5 by 7 of them or of that many pixels a side."""
    patches_hw = (5, 7) if patch is None else (-(-size_hw[0] // patch), -(-size_hw[1] // patch))
    patches = np.random.default_rng(3).integers(0, 256, (*patches_hw, 3), dtype=np.uint8)
    if patch is None:
        image = cv2.resize(patches, size_hw[::-1], interpolation=cv2.INTER_NEAREST)
    else:
        image = patches.repeat(patch, 0).repeat(patch, 1)[: size_hw[0], : size_hw[1]]
    cv2.imwrite(str(path), image)
    return path


def _with_orientation(image: bytes, orientation: int, order: str) -> bytes:
    """A JPEG or PNG file with that EXIF orientation, in that order of bytes."""
    mark = b"II" if order == "<" else b"MM"
    entry = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, orientation, 0)
    tiff = mark + struct.pack(f"{order}HIH", 42, 8, 1) + entry + struct.pack(f"{order}I", 0)
    if image[:2] == b"\xff\xd8":
        segment = b"Exif\0\0" + tiff
        return image[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + image[2:]
    chunk = b"eXIf" + tiff
    end_of_header = 8 + 25  # the signature, and the chunk IHDR
    exif = struct.pack(">I", len(tiff)) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return image[:end_of_header] + exif + image[end_of_header:]


def _run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd)
