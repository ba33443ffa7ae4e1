"""A real detector gives the same detections on every engine and in every form of NMS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boxwright.core.images import read_image
from boxwright.runtimes.detector import Detector
from tolerances import REAL_MODEL_BOXES, REAL_MODEL_SCORES

NUM_IMAGES = 8
CASES = [
    ("graph.onnx", "onnxruntime"),
    ("plugin.onnx", "onnxruntime"),
    ("none.onnx", "openvino"),
    ("graph.onnx", "openvino"),
    ("none_openvino_model", "openvino"),
    ("graph_openvino_model", "openvino"),
]


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
    for nms in ("none", "graph"):
        export(folder / f"{nms}.onnx", folder / f"{nms}_openvino_model", options=ExportOptions(format="openvino"))
    return folder


@pytest.mark.parametrize(("name", "backend"), CASES)
@pytest.mark.parametrize("conf", [None, 0.05])
def test_same_detections_as_the_reference(
    exported: Path, shared_dir: Path, name: str, backend: str, conf: float | None
) -> None:
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
