"""HOG as an ONNX graph: the margins are OpenCV's, window by window, and any engine runs it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from boxwright.core.boxes import pairwise_overlaps, xywh_to_xyxy
from boxwright.core.errors import InputError, ModelFileError, UnsupportedError
from boxwright.export.hog import hog_to_onnx, pyramid_sizes, window_boxes
from boxwright.runtimes.backend import open_backend
from boxwright.runtimes.detector import Detector
from tolerances import HOG_MARGINS

pytest.importorskip("onnxruntime")

Image = NDArray[np.uint8]
SIZE_HW = (176, 232)


@pytest.fixture(scope="module")
def people() -> cv2.HOGDescriptor:
    descriptor = cv2.HOGDescriptor()
    descriptor.setSVMDetector(cv2.HOGDescriptor.getDefaultPeopleDetector())
    return descriptor


@pytest.fixture(scope="module")
def people_file(people: cv2.HOGDescriptor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hog") / "people.xml"
    people.save(str(path))
    return path


@pytest.fixture(scope="module")
def exported(people_file: Path) -> Path:
    return hog_to_onnx(
        people_file, people_file.with_suffix(".onnx"), size_hw=SIZE_HW, class_name="person", scale_step=1.25
    )


def _pictures() -> dict[str, Image]:
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    figure = np.full((*SIZE_HW, 3), (90, 120, 60), dtype=np.uint8)
    cv2.ellipse(figure, (110, 60), (10, 13), 0, 0, 360, (150, 170, 200), -1)
    cv2.rectangle(figure, (95, 75), (125, 115), (30, 30, 160), -1)
    cv2.rectangle(figure, (97, 115), (108, 158), (20, 20, 20), -1)
    cv2.rectangle(figure, (113, 115), (124, 158), (20, 20, 20), -1)
    return {"noise": noise, "figure": figure, "smooth": cv2.GaussianBlur(noise, (0, 0), 4), "flat": noise * 0 + 70}


def _margins_by_opencv(people: cv2.HOGDescriptor, image: Image) -> NDArray[np.float32]:
    """Of all windows of the image's own size, 8 pixels apart, row by row; OpenCV leaves out those below a threshold."""
    places, weights = people.detect(image, hitThreshold=-1000.0, winStride=(8, 8))
    order = np.lexsort((np.asarray(places)[:, 0], np.asarray(places)[:, 1]))
    margins: NDArray[np.float32] = np.ravel(weights)[order].astype(np.float32)
    return margins


@pytest.mark.parametrize("name", ["noise", "figure", "smooth", "flat"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_margins_are_opencvs(people: cv2.HOGDescriptor, exported: Path, name: str, engine: str) -> None:
    pytest.importorskip(engine)
    image = _pictures()[name]
    with open_backend(exported, backend=engine) as backend:
        outputs = backend.run({"images": image.transpose(2, 0, 1)[None].astype(np.float32)})
    start, margins = 0, outputs["class_logits"][0, :, 0]
    for level_hw in pyramid_sizes(SIZE_HW, (128, 64), 1.25):
        level = np.rint(cv2.resize(image.astype(np.float32), level_hw[::-1], interpolation=cv2.INTER_LINEAR))
        expected = _margins_by_opencv(people, level.astype(np.uint8))
        found = margins[start : start + len(expected)]
        np.testing.assert_allclose(found, expected, atol=HOG_MARGINS)
        start += len(expected)
    assert start == len(margins) > 100


def test_boxes_are_the_windows_on_the_input() -> None:
    boxes = window_boxes((141, 186), SIZE_HW, (128, 64))
    assert len(boxes) == 2 * 16
    np.testing.assert_allclose(boxes[0], [0, 0, 64 * 232 / 186, 128 * 176 / 141], rtol=1e-6)
    np.testing.assert_allclose(boxes[17, :2], [8 * 232 / 186, 8 * 176 / 141], rtol=1e-6)


def test_real_photographs(shared_dir: Path, people: cv2.HOGDescriptor, people_file: Path, tmp_path: Path) -> None:
    """Who OpenCV is sure of is among the ONNX file's detections, whose pyramid and NMS are others."""
    out = hog_to_onnx(people_file, tmp_path / "m.onnx", size_hw=(480, 640), class_name="person", scale_step=1.1)
    num_sure = 0
    with Detector(out) as detector:
        for number in (269316, 277005, 364557, 566282):
            file = shared_dir / "data" / "coco-tiny" / "val2017" / f"{number:012d}.jpg"
            image = np.asarray(cv2.imread(str(file)), dtype=np.uint8)
            boxes_xywh, weights = people.detectMultiScale(image)
            sure = xywh_to_xyxy(np.asarray(boxes_xywh, dtype=np.float32))[np.ravel(weights) > 1.0]
            assert (pairwise_overlaps(sure, detector(image).boxes_xyxy).max(axis=1) > 0.5).all()
            num_sure += len(sure)
    assert num_sure == 6


def test_what_cannot_be_exported(tmp_path: Path, people_file: Path) -> None:
    other = cv2.HOGDescriptor((64, 64), (16, 16), (8, 8), (8, 8), 6)
    other.setSVMDetector(np.zeros(other.getDescriptorSize() + 1, dtype=np.float32))
    other.save(str(tmp_path / "six.xml"))
    with pytest.raises(UnsupportedError, match="backend opencv"):
        hog_to_onnx(tmp_path / "six.xml", tmp_path / "m.onnx", size_hw=(128, 128), class_name="thing")
    cascade = Path(cv2.data.haarcascades) / "haarcascade_eye.xml"
    with pytest.raises(ModelFileError, match="a HOG detector"):
        hog_to_onnx(cascade, tmp_path / "m.onnx", size_hw=(128, 128), class_name="eye")
    with pytest.raises(InputError, match="window of 128x64"):
        hog_to_onnx(people_file, tmp_path / "m.onnx", size_hw=(100, 200), class_name="person")
    with pytest.raises(InputError, match="above 1"):
        hog_to_onnx(people_file, tmp_path / "m.onnx", size_hw=(200, 200), class_name="person", scale_step=1.0)
    assert not (tmp_path / "m.onnx").exists()
