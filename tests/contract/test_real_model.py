"""A real detector gives the same detections on every engine and in every form of NMS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boxwright.core.images import read_image
from boxwright.runtimes.detector import Detector
from tolerances import EMBEDDED_BOXES, EMBEDDED_SCORES, REAL_MODEL_BOXES, REAL_MODEL_SCORES

NUM_IMAGES = 8
CASES = [
    ("graph.onnx", "onnxruntime"),
    ("plugin.onnx", "onnxruntime"),
    ("none.onnx", "openvino"),
    ("graph.onnx", "openvino"),
    ("none_openvino_model", "openvino"),
    ("graph_openvino_model", "openvino"),
    ("plugin.onnx", "openvino"),
]
# A graph that resizes by itself is a grey level off in a few pixels of ten thousand.
PIXELS = [("pixels.onnx", "onnxruntime"), ("pixels.onnx", "openvino"), ("pixels_openvino_model", "openvino")]


@pytest.fixture(scope="module")
def exported(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with YOLOX-nano in every form."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    from boxwright.export import ExportOptions, export

    folder = tmp_path_factory.mktemp("yolox")
    source = shared_dir / "weights" / "yolox_nano_coco.onnx"
    for nms in ("none", "graph", "plugin"):
        export(
            source,
            folder / f"{nms}.onnx",
            head="yolox",
            labels="coco",
            preprocess="yolox-legacy",
            options=ExportOptions(nms=nms),  # type: ignore[arg-type]
        )
    embed = ExportOptions(embed_preprocess=True)
    export(folder / "graph.onnx", folder / "pixels.onnx", options=embed)
    export(folder / "pixels.onnx", folder / "pixels_openvino_model", options=ExportOptions(format="openvino"))
    for nms in ("none", "graph"):
        export(folder / f"{nms}.onnx", folder / f"{nms}_openvino_model", options=ExportOptions(format="openvino"))
    return folder


@pytest.mark.parametrize(("name", "backend"), CASES)
@pytest.mark.parametrize("conf", [None, 0.05])
def test_same_detections_as_the_reference(
    exported: Path, shared_dir: Path, name: str, backend: str, conf: float | None, request: pytest.FixtureRequest
) -> None:
    if (name, backend) == ("plugin.onnx", "openvino"):
        request.getfixturevalue("openvino_extension")
    paths = sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))[:NUM_IMAGES]
    num_boxes = 0
    with (
        Detector(exported / "none.onnx", backend="onnxruntime", conf=conf) as reference,
        Detector(exported / name, backend=backend, conf=conf) as detector,
    ):
        for path in paths:
            image = read_image(path)
            expected, found = reference(image), detector(image)
            assert found.class_ids.tolist() == expected.class_ids.tolist(), path.name
            np.testing.assert_allclose(found.scores, expected.scores, atol=REAL_MODEL_SCORES)
            np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=REAL_MODEL_BOXES)
            num_boxes += len(expected)
    assert num_boxes >= 50


@pytest.mark.parametrize(("name", "backend"), PIXELS)
def test_a_graph_that_takes_pixels_detects_the_same(exported: Path, shared_dir: Path, name: str, backend: str) -> None:
    paths = sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))[:NUM_IMAGES]
    images = [read_image(path) for path in paths]
    assert len({image.shape for image in images}) > 3
    num_boxes = 0
    with (
        Detector(exported / "none.onnx", backend="onnxruntime") as reference,
        Detector(exported / name, backend=backend) as detector,
    ):
        for path, expected, found in zip(paths, reference(images), detector(images), strict=True):
            assert found.class_ids.tolist() == expected.class_ids.tolist(), path.name
            np.testing.assert_allclose(found.scores, expected.scores, atol=EMBEDDED_SCORES)
            np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=EMBEDDED_BOXES)
            num_boxes += len(expected)
    assert num_boxes >= 50
