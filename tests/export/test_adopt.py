"""Foreign ONNX files with the heads that people have, adopted, detect what their outputs say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

import foreign_models
from boxwright.core.errors import InputError, ModelFileError, UnsupportedError
from boxwright.export import ExportOptions, export
from boxwright.export.heads import head_names
from boxwright.runtimes.detector import Detector
from foreign_models import HEIGHT, LABELS, NUM_CLASSES, STRIDES, WIDTH

Boxes = NDArray[np.float32]
CONF, IOU = 0.2, 0.5


def image() -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)


def run_original(path: Path) -> list[NDArray[Any]]:
    """The file's own outputs for the image, stretched RGB / 255."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    tensor = image()[..., ::-1].astype(np.float32).transpose(2, 0, 1)[None] / 255
    return list(session.run(None, {"input.1": tensor}))


def corners(cxcywh: Boxes) -> Boxes:
    return np.concatenate([cxcywh[:, :2] - cxcywh[:, 2:] / 2, cxcywh[:, :2] + cxcywh[:, 2:] / 2], axis=1)


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def sigmoid(logits: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-logits))


def as_decoded(outputs: list[NDArray[Any]]) -> tuple[Boxes, NDArray[Any]]:
    rows = outputs[0][0]
    return corners(rows[:, :4]), rows[:, 4:5] * rows[:, 5:]


def as_yolox(outputs: list[NDArray[Any]]) -> tuple[Boxes, NDArray[Any]]:
    rows, grids = outputs[0][0], []
    for stride in STRIDES:
        for y in range(HEIGHT // stride):
            grids += [(x * stride, y * stride, stride) for x in range(WIDTH // stride)]
    grid = np.array(grids, np.float32)
    centres = rows[:, :2] * grid[:, 2:] + grid[:, :2]
    return corners(np.concatenate([centres, np.exp(rows[:, 2:4]) * grid[:, 2:]], 1)), rows[:, 4:5] * rows[:, 5:]


def as_yolov8(outputs: list[NDArray[Any]]) -> tuple[Boxes, NDArray[Any]]:
    rows = outputs[0][0] if outputs[0].shape[2] == 4 + NUM_CLASSES else outputs[0][0].T
    return corners(rows[:, :4]), rows[:, 4:]


def as_ssd(
    outputs: list[NDArray[Any]], *, probabilities: bool, background: bool, relative: bool
) -> tuple[Boxes, NDArray[Any]]:
    scores, boxes = outputs[0][0], outputs[1][0]
    if not probabilities:
        scores = softmax(scores) if background else sigmoid(scores)
    factors = np.array([WIDTH, HEIGHT] * 2) if relative else 1
    return boxes * factors, scores[:, int(background) :]


def as_detr(outputs: list[NDArray[Any]], *, background: bool) -> tuple[Boxes, NDArray[Any]]:
    logits, boxes = outputs[0][0], outputs[1][0]
    scores = softmax(logits)[:, :-1] if background else sigmoid(logits)
    return corners(boxes * np.array([WIDTH, HEIGHT] * 2)), scores


CASES: dict[
    str, tuple[str, Callable[[Path], Path], Callable[[list[NDArray[Any]]], tuple[Boxes, NDArray[Any]]], bool]
] = {
    # name: (head, file, boxes and scores of its outputs, whether a box can have several labels)
    "yolox": ("yolox", foreign_models.yolox, as_yolox, False),
    "yolox of opset 11": ("yolox", partial(foreign_models.yolox, opset=11), as_yolox, False),
    "yolox that decodes": ("yolox", partial(foreign_models.yolox, decoded=True), as_decoded, False),
    "yolov5": ("yolov5", foreign_models.yolov5, as_decoded, False),
    "yolov5 with maps": ("yolov5", partial(foreign_models.yolov5, with_maps=True), as_decoded, False),
    "yolov5 of open batch": ("yolov5", partial(foreign_models.yolov5, batch="n"), as_decoded, False),
    "yolov8": ("yolov8", foreign_models.yolov8, as_yolov8, False),
    "yolov8 anchors first": ("yolov8", partial(foreign_models.yolov8, anchors_first=True), as_yolov8, False),
    "ssd": ("ssd", foreign_models.ssd, partial(as_ssd, probabilities=True, background=True, relative=True), True),
    "ssd of logits in pixels": (
        "ssd",
        partial(foreign_models.ssd, softmax=False, relative=False),
        partial(as_ssd, probabilities=False, background=True, relative=False),
        True,
    ),
    "ssd without background": (
        "ssd",
        partial(foreign_models.ssd, background=False),
        partial(as_ssd, probabilities=True, background=False, relative=True),
        True,
    ),
    "detr": ("detr", foreign_models.detr, partial(as_detr, background=True), False),
    "rt-detr": ("detr", partial(foreign_models.detr, background=False), partial(as_detr, background=False), True),
}


def overlap(one: Boxes, other: Boxes) -> float:
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    return shared / (float(np.prod(one[2:] - one[:2])) + float(np.prod(other[2:] - other[:2])) - shared)


def expected_detections(
    boxes: Boxes, scores: NDArray[Any], *, several_labels: bool, suppress: bool
) -> list[tuple[float, int, Boxes]]:
    """Plain loops over all pairs: another implementation than the one that is tested."""
    pairs = []
    for row, row_scores in enumerate(scores):
        classes = range(NUM_CLASSES) if several_labels else [int(row_scores.argmax())]
        pairs += [(float(row_scores[c]), c, boxes[row]) for c in classes if row_scores[c] > CONF]
    kept: list[tuple[float, int, Boxes]] = []
    for pair in sorted(pairs, key=lambda pair: -pair[0]):
        rivals = [other for other in kept if other[1] == pair[1]] if suppress else []
        if all(overlap(other[2], pair[2]) <= IOU for other in rivals):
            kept.append(pair)
    return kept


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("nms", ["graph", "none"])
def test_an_adopted_file_detects_what_its_outputs_say(case: str, nms: Any, tmp_path: Path) -> None:
    head, make, read, several_labels = CASES[case]
    path = make(tmp_path / "foreign.onnx")
    expected = expected_detections(*read(run_original(path)), several_labels=several_labels, suppress=head != "detr")
    result = export(
        path,
        tmp_path / "adopted.onnx",
        head=head,
        labels=LABELS,
        preprocess="stretch",
        options=ExportOptions(nms=nms),
    )
    assert result.verification.proven and result.verification.matched_fraction == 1
    assert result.manifest.stage == ("detections" if nms == "graph" else result.manifest.stage)
    with Detector(tmp_path / "adopted.onnx", conf=CONF, iou=IOU) as detector:
        found = detector(image())
    assert len(expected) >= 10
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected], atol=1e-5)
    np.testing.assert_array_equal(found.class_ids, [class_id for _, class_id, _ in expected])
    inside = np.clip(np.array([box for _, _, box in expected]), 0, [WIDTH, HEIGHT] * 2)
    np.testing.assert_allclose(found.boxes_xyxy, inside, atol=1e-3)
    onnx.checker.check_model(str(tmp_path / "adopted.onnx"), full_check=True)


def test_every_head_has_a_case() -> None:
    assert {head for head, *_ in CASES.values()} == set(head_names())


def test_an_open_batch_stays_open(tmp_path: Path) -> None:
    path = foreign_models.yolov8(tmp_path / "foreign.onnx", batch="n")
    out = tmp_path / "adopted.onnx"
    export(path, out, head="yolov8", labels=LABELS, preprocess="yolov8", options=ExportOptions(dynamic=True))
    images = [image(), cv2.flip(image(), 1)[:40], image()[:, :50]]
    with Detector(out, conf=CONF, iou=IOU) as detector:
        assert detector.backend.inputs["images"].shape[0] is None
        together, alone = detector(images), [detector(entry) for entry in images]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3)
        np.testing.assert_array_equal(one.class_ids, other.class_ids)


BAD: dict[str, tuple[dict[str, Any], type[InputError], str]] = {
    "too many labels": ({"labels": "a,b,c,d,e,f"}, InputError, "3 names.*got 6"),
    "another head": ({"head": "ssd"}, ModelFileError, "two outputs, scores"),
    "no such head": ({"head": "yolov99"}, UnsupportedError, "detr, ssd, yolov5, yolov8, yolox"),
    "no labels": ({"labels": None}, InputError, "--labels"),
    "no preprocessing": ({"preprocess": None}, InputError, "--preprocess"),
    "another size": ({"options": ExportOptions(size_hw=(320, 320))}, UnsupportedError, "64x96"),
    "another batch": ({"options": ExportOptions(batch=2)}, UnsupportedError, "batch 1"),
    "open batch": ({"options": ExportOptions(dynamic=True)}, UnsupportedError, "--dynamic"),
    "undecoded boxes": ({"head": "yolov5"}, ModelFileError, "--head yolox, which they fit"),
    "the head next to it": (
        {"head": "yolov8"},
        ModelFileError,
        r"head yolov8.*output \(1, 126, 8\).*--head yolox, which",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_and_nothing_written(name: str, tmp_path: Path) -> None:
    changes, kind, message = BAD[name]
    path = foreign_models.yolox(tmp_path / "foreign.onnx")
    arguments = {"head": "yolox", "labels": LABELS, "preprocess": "yolox", **changes}
    (tmp_path / "out").mkdir()
    with pytest.raises(kind, match=message) as caught:
        export(path, tmp_path / "out" / "adopted.onnx", **arguments)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").iterdir())


def save_model(path: Path, inputs: list[onnx.ValueInfoProto]) -> Path:
    nodes = [helper.make_node("Identity", [inputs[0].name], ["out"])]
    out = helper.make_tensor_value_info("out", inputs[0].type.tensor_type.elem_type, None)
    graph = helper.make_graph(nodes, "g", inputs, [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [([1, 64, 96, 3], TensorProto.FLOAT), ([1, 3, 64, 96], TensorProto.UINT8), ([1, 10], TensorProto.FLOAT)],
)
def test_inputs_that_are_no_planar_float_images_are_refused(shape: list[int], dtype: int, tmp_path: Path) -> None:
    path = save_model(tmp_path / "other.onnx", [helper.make_tensor_value_info("x", dtype, shape)])
    with pytest.raises(ModelFileError, match="float32 \\(B, 3, H, W\\)"):
        export(path, tmp_path / "a.onnx", head="yolov8", labels=LABELS, preprocess="yolov8")


def test_a_size_that_the_graph_leaves_open_must_be_given(tmp_path: Path) -> None:
    entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "height", "width"])
    with pytest.raises(UnsupportedError, match="--imgsz"):
        export(save_model(tmp_path / "open.onnx", [entry]), head="yolov8", labels=LABELS, preprocess="yolov8")


def test_data_outside_the_folder_is_refused(tmp_path: Path) -> None:
    path = foreign_models.yolov8(tmp_path / "foreign.onnx")
    model = onnx.load(path)
    inside = tmp_path / "model"
    inside.mkdir()
    onnx.save(model, inside / "m.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    (inside / "w.data").rename(tmp_path / "w.data")
    stored = onnx.load(inside / "m.onnx", load_external_data=False)
    for tensor in stored.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../w.data"
    (inside / "m.onnx").write_bytes(stored.SerializeToString())
    with pytest.raises(ModelFileError, match="inside the folder"):
        export(inside / "m.onnx", tmp_path / "a.onnx", head="yolov8", labels=LABELS, preprocess="yolov8")
