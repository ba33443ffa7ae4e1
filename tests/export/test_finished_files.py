"""What lies behind the heads of a finished file of ours can be changed without its checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import foreign_models
from boxwright.core.errors import UnsupportedError
from boxwright.export import ExportOptions, export
from boxwright.runtimes.detector import Detector
from foreign_models import LABELS
from models_for_tests import save_colour_cells


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """YOLOv5 with decoding and NMS inside."""
    source = foreign_models.yolov5(tmp_path / "source.onnx")
    out = tmp_path / "finished.onnx"
    export(source, out, head="yolov5", labels=LABELS, preprocess="yolov5")
    return out


def node_types(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("nms", ["none", "graph", "plugin"])
def test_the_form_of_nms_can_be_changed_and_changed_back(finished: Path, tmp_path: Path, nms: str) -> None:
    image = np.random.default_rng(2).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    changed = export(finished, tmp_path / "changed.onnx", options=ExportOptions(nms=nms))  # type: ignore[arg-type]
    assert changed.manifest.stage == ("boxes" if nms == "none" else "detections")
    assert ("DecodeNMS" in node_types(changed.path)) == (nms == "plugin")
    assert ("NonMaxSuppression" in node_types(changed.path)) == (nms == "graph")
    onnx.checker.check_model(str(changed.path), full_check=True)
    back = export(changed.path, tmp_path / "back.onnx")
    assert "NonMaxSuppression" in node_types(back.path)
    with Detector(finished, conf=0.3) as first:
        expected = first(image)
    assert len(expected) > 3
    for path in (changed.path, back.path):
        with Detector(path, conf=0.3) as detector:
            found = detector(image)
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=1e-3)
        assert found.class_ids.tolist() == expected.class_ids.tolist()


def test_thresholds_and_limits_can_be_changed(finished: Path, tmp_path: Path) -> None:
    options = ExportOptions(conf=0.4, iou=0.3, max_det=7, max_candidates=50, agnostic_nms=True)
    manifest = export(finished, tmp_path / "changed.onnx", options=options).manifest
    assert (manifest.score_threshold, manifest.iou_threshold, manifest.decode.max_detections) == (0.4, 0.3, 7)
    assert manifest.decode.nms is not None and manifest.decode.nms.class_agnostic
    assert manifest.decode.nms.pre_nms_top_k == 50
    defaults = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(tmp_path / "changed.onnx").graph.initializer
    }
    assert defaults["score_threshold"] == np.float32(0.4)
    assert defaults["iou_threshold"] == np.float32(0.3)


@pytest.mark.parametrize("options", [{"max_det": 3}, {"conf": 0.5}, {"nms": "none"}, {"nms": "plugin"}], ids=str)
def test_a_graph_without_heads_under_their_names_stays_as_it_is(tmp_path: Path, options: dict[str, Any]) -> None:
    source = save_colour_cells(tmp_path / "m.onnx", "detections")
    graph = onnx.load(source)
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = ["hidden" if name == "class_logits" else name for name in names]
    onnx.save(graph, source)
    with pytest.raises(UnsupportedError, match="a graph with raw heads"):
        export(source, tmp_path / "other.onnx", options=ExportOptions(**options))
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_hw": (320, 320)}, "--imgsz: expected 64x96, which finished.onnx is made for, got 320x320"),
        ({"batch": 3}, "--batch 3: expected batch 1"),
        ({"dynamic": True}, "--dynamic: expected batch 1"),
        ({"opset": 18}, "--opset: expected 17, which finished.onnx has, got 18"),
    ],
)
def test_what_a_file_was_made_for_stays(finished: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        export(finished, tmp_path / "other.onnx", options=ExportOptions(**options))
