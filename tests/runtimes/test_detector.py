"""`Detector` from every form of image to boxes that can be told by looking, and what it refuses."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

from boxwright.core.detections import Detections
from boxwright.core.errors import ImageError, InputError, ManifestError, ModelFileError, UnsupportedError
from boxwright.core.preprocess import Preprocess
from boxwright.runtimes.detector import Detector
from models_for_tests import (
    MAX_DETECTIONS,
    box_of_cell,
    colour_cells_manifest,
    colour_cells_onnx,
    colour_image,
    save_colour_cells,
)

pytest.importorskip("onnxruntime")

IMAGE = colour_image((1, 2, "red"), (4, 6, "blue"))
EXPECTED = [("blue", box_of_cell(4, 6)), ("red", box_of_cell(1, 2))]


def found(detector: Detector, detections: Detections) -> list[tuple[str, list[float]]]:
    """Class names and boxes, sorted by name."""
    names = [detector.class_names[class_id] for class_id in detections.class_ids]
    return sorted(zip(names, detections.boxes_xyxy.tolist(), strict=True))


def same(left: list[tuple[str, list[float]]], right: list[tuple[str, list[float]]]) -> bool:
    return [name for name, _ in left] == [name for name, _ in right] and np.allclose(
        [box for _, box in left], [box for _, box in right], atol=1e-3
    )


@pytest.fixture(scope="module")
def raw_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_colour_cells(tmp_path_factory.mktemp("models") / "raw.onnx")


@pytest.fixture(scope="module")
def detector(raw_path: Path) -> Detector:
    return Detector(raw_path)


def _forms(folder: Path) -> dict[str, object]:
    path = folder / "image.png"
    cv2.imwrite(str(path), IMAGE)
    rgb = PIL.Image.fromarray(cv2.cvtColor(IMAGE, cv2.COLOR_BGR2RGB))
    return {
        "array": IMAGE,
        "strided array": np.repeat(IMAGE, 2, axis=1)[:, ::2],
        "read-only array": np.frombuffer(IMAGE.tobytes(), np.uint8).reshape(IMAGE.shape),
        "str": str(path),
        "path": path,
        "PIL RGB": rgb,
        "PIL RGBA": rgb.convert("RGBA"),
        "PIL palette": rgb.convert("P", palette=PIL.Image.Palette.ADAPTIVE),
        "PIL from a file": PIL.Image.open(path),
    }


def test_every_form_of_image_gives_the_same(detector: Detector, tmp_path: Path) -> None:
    for form, image in _forms(tmp_path).items():
        assert same(found(detector, detector(image)), EXPECTED), form


def test_boxes_lie_in_the_original_image(detector: Detector) -> None:
    enlarged = colour_image((1, 2, "red"), cell_pixels=20)
    assert same(found(detector, detector(enlarged)), [("red", box_of_cell(1, 2, cell_pixels=20))])
    # 320x200 is shrunk by 5 and padded below; the square covers the cell of row 1 and column 2 again.
    wide = np.zeros((200, 320, 3), np.uint8)
    wide[40:80, 80:120, 2] = 255
    assert same(found(detector, detector(wide)), [("red", [60.0, 20.0, 140.0, 100.0])])
    wide[160:200, 0:40, 0] = 255
    corner = [("blue", [0.0, 140.0, 60.0, 200.0])]
    assert same(found(detector, detector(wide))[:1], corner)  # clipped to the image, not to the padded input


def test_no_detections(detector: Detector) -> None:
    result = detector(np.zeros((48, 64, 3), np.uint8))
    assert len(result) == 0
    assert result.boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize("batch", [1, 2, 4, None])
@pytest.mark.parametrize("stage", ["raw", "detections"])
@pytest.mark.parametrize("suffix", [".onnx", ""])
def test_lists_of_any_length(tmp_path: Path, batch: int | None, stage: str, suffix: str) -> None:
    if not suffix:
        pytest.importorskip("openvino")
    path = save_colour_cells(tmp_path / f"m{suffix}", stage, batch=batch)
    images = [
        colour_image((index % 6, index, "green"), cell_pixels=8 + index) if index % 3 else colour_image()
        for index in range(5)
    ]
    with Detector(path) as detector:
        alone = [detector(image) for image in images]
        for count in (0, 1, 2, 3, 5):
            together = detector(images[:count])
            assert len(together) == count
            for one, other in zip(alone, together, strict=False):
                assert same(found(detector, one), found(detector, other))
    assert [len(entry) for entry in alone] == [0, 1, 1, 0, 1]


def test_more_images_than_a_batch_takes(detector: Detector) -> None:
    assert detector.batch_size == 1
    with pytest.raises(InputError, match="1 to 1 images, got 2"):
        detector.preprocess([IMAGE, IMAGE])
    with pytest.raises(InputError, match="got 0"):
        detector.preprocess([])


def test_the_three_stages_are_the_whole(detector: Detector) -> None:
    batch = detector.preprocess([IMAGE])
    assert batch.images.shape == (1, 3, 48, 64)
    outputs = detector.infer(batch)
    assert set(outputs) == {"box_regression", "class_logits"}
    assert same(found(detector, detector.postprocess(outputs, batch.transforms)[0]), EXPECTED)


def test_a_kept_batch_is_not_overwritten(detector: Detector) -> None:
    kept = detector.preprocess([IMAGE])
    before = kept.images.copy()
    detector(np.full((48, 64, 3), 255, np.uint8))
    assert (kept.images == before).all()


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("stage", ["raw", "detections"])
def test_thresholds(tmp_path: Path, backend: str, stage: str) -> None:
    """The weak detection scores sigmoid(20 * (140 / 255 - 0.5)) = 0.727."""
    pytest.importorskip(backend)
    path = save_colour_cells(tmp_path / "m.onnx", stage)
    image = colour_image((0, 0, "red"), (3, 3, "dark green"), (5, 7, "dark blue"))
    for conf, count in ((None, 3), (0.5, 3), (0.72, 3), (0.74, 1), (1.0, 0)):
        with Detector(path, backend=backend, conf=conf) as detector:
            assert len(detector(image)) == count, conf
            assert detector.score_threshold == (0.25 if conf is None else conf)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_iou_threshold_reaches_a_graph_with_nms(tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    path = save_colour_cells(tmp_path / "m.onnx", "detections")
    for iou, count in ((None, 2), (0.6, 2), (0.4, 1)):
        with Detector(path, backend=backend, iou=iou) as detector:
            assert len(detector(IMAGE)) == count, iou


def test_iou_threshold_on_the_host(raw_path: Path) -> None:
    """Boxes of neighbouring cells overlap by 1/3."""
    image = colour_image((2, 2, "red"), (2, 3, "dark red"))
    for iou, count in ((0.3, 1), (0.34, 2)):
        assert len(Detector(raw_path, iou=iou)(image)) == count, iou


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_built_in_thresholds_are_never_ignored(tmp_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    path = save_colour_cells(tmp_path / "m.onnx", "detections", thresholds="constant")
    for wish in ({"conf": 0.3}, {"iou": 0.5}):
        with pytest.raises(UnsupportedError, match="built-in"):
            Detector(path, backend=backend, **wish)
    detections = Detector(path, backend=backend)(IMAGE)  # the graph keeps what is above 0.001
    assert (detections.scores > 0.25).all()
    assert len(detections) == 2


@pytest.mark.parametrize("wish", [{"conf": -0.1}, {"conf": 1.5}, {"iou": 2.0}, {"iou": float("nan")}])
def test_thresholds_that_are_none(raw_path: Path, wish: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"a number in \[0, 1\]"):
        Detector(raw_path, **wish)


def test_max_detections(detector: Detector) -> None:
    image = colour_image(*[(row, column, "red") for row in range(6) for column in (0, 3, 6)])
    assert len(detector(image)) == MAX_DETECTIONS


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((48, 64), np.uint8), r"uint8 array of shape \(48, 64\)"),
        (np.zeros((48, 64, 4), np.uint8), "shape"),
        (np.zeros((48, 64, 3), np.uint16), "uint16"),
        (np.zeros((48, 64, 3), np.float32), "float32"),
        (np.zeros((3, 48, 64), np.uint8), "shape"),
        (np.zeros((0, 64, 3), np.uint8), "shape"),
        (np.zeros((1, 1, 3), np.uint8), "1x1"),
        (np.zeros((50, 20000, 3), np.uint8), "20000x50"),
        (PIL.Image.new("I;16", (64, 48)), "mode 'I;16'"),
        (PIL.Image.new("F", (64, 48)), "mode 'F'"),
        (None, "NoneType"),
        (3, "int"),
        ("missing.jpg", "No such file"),
    ],
)
def test_images_that_cannot_be_used(detector: Detector, image: object, got: str) -> None:
    with pytest.raises(ImageError, match=got) as caught:
        detector(image)
    assert "\n" not in str(caught.value)


def test_truncated_pil_image(detector: Detector, tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3)).astype(np.uint8)
    path.write_bytes(cv2.imencode(".jpg", noise)[1].tobytes()[:9000])
    with pytest.raises(ImageError, match="intact copy"):
        detector(PIL.Image.open(path))
    with pytest.raises(ImageError):
        detector(path)


def _manifest_with(**changes: object) -> str:
    return json.dumps({**json.loads(colour_cells_manifest().to_json()), **changes})


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("", "boxwright export FILE --head"),
        ("not JSON", "a manifest in JSON"),
        (_manifest_with(schema_version=99), "update boxwright"),
        (_manifest_with(colour="mauve"), "unknown key 'colour'"),
        (_manifest_with(class_names=["one"]), "3 names"),
        (colour_cells_manifest(stage="detections").to_json(), "outputs num_detections, boxes, scores, class_ids"),
        (colour_cells_manifest(preprocess=Preprocess(size_hw=(64, 64))).to_json(), "64x64 pixels, got 48x64"),
    ],
)
def test_manifests_that_do_not_fit(tmp_path: Path, manifest: str, message: str) -> None:
    path = save_colour_cells(tmp_path / "m.onnx", manifest=manifest)
    with pytest.raises(ManifestError, match=message) as caught:
        Detector(path)
    assert str(path) in str(caught.value)


def test_a_manifest_given_by_the_caller(tmp_path: Path) -> None:
    path = save_colour_cells(tmp_path / "m.onnx", manifest="")
    detector = Detector(path, manifest=colour_cells_manifest(score_threshold=0.9))
    assert detector.score_threshold == 0.9
    assert same(found(detector, detector(IMAGE)), EXPECTED)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.onnx", None, "does not exist"),
        ("cut.onnx", colour_cells_onnx().SerializeToString()[:600], "bytes too early"),
        ("text.onnx", b"no model at all", "no ONNX model"),
        ("model.txt", b"?", "the suffix '.txt'"),
        ("model", b"?", "without a suffix"),
        ("weights.pth", b"?", "boxwright export"),
        ("cascade.xml", b"<opencv_storage/>", "intact cascade or HOG file of OpenCV"),
        ("feed.xml", b"<feed/>", "<net> or <opencv_storage>"),
        ("page.xml", b"<html/>", "got an HTML page"),
        ("lonely.xml", b"<net/>", "lonely.bin"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if name.endswith(".xml"):
        pytest.importorskip("openvino")
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ModelFileError, UnsupportedError), match=message) as caught:
        Detector(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_graph_that_the_engine_refuses(tmp_path: Path) -> None:
    model = colour_cells_onnx()
    model.graph.node[0].op_type = "NoSuchOperator"
    path = tmp_path / "odd.onnx"
    path.write_bytes(model.SerializeToString())
    for backend in ("onnxruntime", "openvino"):
        pytest.importorskip(backend)
        with pytest.raises(ModelFileError, match="NoSuchOperator") as caught:
            Detector(path, backend=backend)
        assert "\n" not in str(caught.value)


def test_precision_is_what_was_asked_for(tmp_path: Path) -> None:
    path = save_colour_cells(tmp_path / "m.onnx")
    quantized = save_colour_cells(tmp_path / "q.onnx", manifest=colour_cells_manifest(precision="int8"))
    assert Detector(path).precision == "fp32"
    assert Detector(quantized).precision == Detector(quantized, precision="int8").precision == "int8"
    with pytest.raises(UnsupportedError, match="boxwright calibrate"):
        Detector(path, precision="int8")


def test_wrong_backend_for_the_file(raw_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"one of .*onnxruntime.*got 'darknet'"):
        Detector(raw_path, backend="darknet")
    (tmp_path / "m.xml").write_text("<net/>")
    with pytest.raises(ModelFileError, match=r"that onnxruntime opens \(\.onnx\)"):
        Detector(tmp_path / "m.xml", backend="onnxruntime")


def test_stream_reports_bad_images_and_goes_on(detector: Detector, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    (tmp_path / "b.png").write_bytes(b"no image")
    cv2.imwrite(str(tmp_path / "c.png"), np.zeros((1, 1, 3), np.uint8))
    cv2.imwrite(str(tmp_path / "d.png"), colour_image((0, 0, "green")))
    items = list(detector.stream(tmp_path))
    assert [Path(item.name).name for item in items] == ["a.png", "b.png", "c.png", "d.png"]
    assert [item.error is None for item in items] == [True, False, False, True]
    assert [item.detections is None for item in items] == [False, True, True, False]
    assert "c.png" in str(items[2].error)
    assert "1x1" in str(items[2].error)
    assert same(found(detector, items[0].detections or Detections.empty()), EXPECTED)
    assert items[3].image is not None


def test_stream_of_nothing(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        detector.stream(tmp_path)
    with pytest.raises(ImageError):
        detector.stream(tmp_path / "missing")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_several_threads_share_a_detector(raw_path: Path, backend: str) -> None:
    pytest.importorskip(backend)
    images = [colour_image((index % 6, index % 8, "green"), cell_pixels=8 + index % 5) for index in range(40)]
    with Detector(raw_path, backend=backend) as detector, ThreadPoolExecutor(4) as threads:
        together = list(threads.map(detector, images * 3))
        alone = [detector(image) for image in images]
    for one, other in zip(alone * 3, together, strict=True):
        assert len(one) == 1
        assert same(found(detector, one), found(detector, other))
