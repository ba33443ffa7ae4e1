"""The OpenVINO extension: it is built here, runs the node itself, and gives what the graph form gives."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from boxwright.core.decode import decode_nms
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.errors import UnsupportedError
from boxwright.export import ExportOptions, export
from boxwright.export.decode_nms.function import (
    DOMAIN,
    OP_TYPE,
    OUTPUT_NAMES,
    input_names,
    node_attributes,
)
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.openvino import load_plugin_if_built
from boxwright.runtimes.openvino_plugin import build_openvino_plugin, find_openvino_plugin
from models_for_tests import HEIGHT, WIDTH, save_colour_cells
from tolerances import REAL_MODEL_BOXES, REAL_MODEL_SCORES

openvino = pytest.importorskip("openvino")

RANDOM = np.random.default_rng(5)
BATCH, ANCHORS, CLASSES = 2, 21, 3
# Every attribute has a value in one of them that is not its default.
CASES = [
    DecodeNmsAttributes(box_coding="xyxy", max_detections=7),
    DecodeNmsAttributes(
        box_coding="anchor_delta",
        box_weights=(10.000001, 10.0, 5.0, 5.0),
        delta_clip=4.1351666,
        score_activation="softmax",
        background_class=0,
        class_specific_boxes=True,
        multi_label=True,
        clip_to_image=True,
        min_size=1.5,
        max_detections=9,
    ),
    DecodeNmsAttributes(
        box_coding="yolov4",
        level_sizes=(16, 5),
        level_strides=(8.0, 16.0),
        level_scale_xy=(1.2, 1.0500001),
        score_combination="multiply",
        objectness_activation="none",
        overlap="diou",
        class_agnostic=True,
        pre_nms_top_k=10,
        top_k_scope="level",
        max_detections=5,
    ),
    DecodeNmsAttributes(box_coding="cxcywh", with_nms=False, score_activation="none", max_detections=4),
    DecodeNmsAttributes(box_coding="yolox", score_combination="multiply", max_detections=6),
    DecodeNmsAttributes(
        box_coding="distances", score_combination="sqrt", pre_nms_top_k=4, top_k_scope="class", max_detections=8
    ),
    *(
        DecodeNmsAttributes(box_coding=coding, level_sizes=(16, 5), level_strides=(8.0, 16.0), max_detections=5)
        for coding in ("yolov1", "yolov2", "yolov5")
    ),
]
MILD = {"yolox", "yolov1", "yolov2"}  # numbers as networks give them: these codings enlarge them


@pytest.fixture(scope="module", autouse=True)
def plugin() -> Path:
    """The library, compiled where the cache does not have it."""
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler, so no plugin can be built here")
    return build_openvino_plugin()[0]


@pytest.fixture
def core() -> openvino.Core:
    core = openvino.Core()
    load_plugin_if_built(core)
    return core


def _operands(attributes: DecodeNmsAttributes) -> dict[str, np.ndarray]:
    width = 4 * CLASSES if attributes.class_specific_boxes else 4
    corners = RANDOM.uniform(0, 40, (ANCHORS, 2))
    operands = {
        "box_regression": RANDOM.normal(size=(BATCH, ANCHORS, width)) * (0.5 if attributes.box_coding in MILD else 3),
        "class_logits": RANDOM.normal(size=(BATCH, ANCHORS, CLASSES)),
    }
    if attributes.box_coding == "xyxy":
        operands["box_regression"] = np.tile(np.hstack([corners, corners + 20]), (BATCH, 1, 1))
    if attributes.score_combination != "none":
        operands["objectness"] = RANDOM.uniform(0, 1, (BATCH, ANCHORS))
    if attributes.clip_to_image:
        operands["image_size_hw"] = np.array([[48, 64], [40, 50]])
    if attributes.box_coding not in ("xyxy", "cxcywh"):
        operands["priors"] = np.hstack([corners, corners + 16])
    if attributes.class_specific_boxes:  # as proposals are: other ones for each image
        operands["priors"] = np.stack([operands["priors"], operands["priors"][::-1] + 2])
    return {name: array.astype(np.float32) for name, array in operands.items()}


def _node_model(attributes: DecodeNmsAttributes, operands: dict[str, np.ndarray], **changes: object) -> bytes:
    """An ONNX file with the node alone; `changes` replaces attributes of the node."""
    names = input_names(attributes, has_priors="priors" in operands)
    values = {name: ir.val(name, ir.DataType.FLOAT, []) for name in names}
    for name, array in operands.items():
        values[name].shape = ir.Shape(array.shape)
    node = ir.node(
        OP_TYPE,
        list(values.values()),
        attributes={**node_attributes(attributes), **changes},  # type: ignore[arg-type]
        domain=DOMAIN,
        num_outputs=len(OUTPUT_NAMES),
    )
    for output, name in zip(node.outputs, OUTPUT_NAMES, strict=True):
        output.name = name
        dtype = ir.DataType.INT32 if name in ("num_detections", "class_ids") else ir.DataType.FLOAT
        output.type = ir.TensorType(dtype)
    graph = ir.Graph(
        list(values.values()), node.outputs, nodes=[node], opset_imports={"": 17, DOMAIN: 1}, name="decode_nms"
    )
    return ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()


@pytest.mark.parametrize("attributes", CASES, ids=lambda attributes: attributes.box_coding)
def test_the_node_is_the_reference_also_after_a_round_trip(
    core: openvino.Core, tmp_path: Path, attributes: DecodeNmsAttributes
) -> None:
    operands = _operands(attributes)
    model = core.read_model(_node_model(attributes, operands))
    (node,) = [operation for operation in model.get_ops() if operation.get_type_name() == OP_TYPE]
    openvino.save_model(model, tmp_path / "node.xml", compress_to_fp16=False)
    stored = core.read_model(tmp_path / "node.xml")
    (again,) = [operation for operation in stored.get_ops() if operation.get_type_name() == OP_TYPE]
    assert again.get_attributes() == node.get_attributes()
    expected = decode_nms(**operands, attributes=attributes, score_threshold=0.3, iou_threshold=0.5)  # type: ignore[arg-type]
    assert expected.num_detections.max() > 0
    inputs = {**operands, "score_threshold": np.float32(0.3), "iou_threshold": np.float32(0.5)}
    for candidate in (model, stored):
        outputs = core.compile_model(candidate, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(inputs)
        assert np.array_equal(outputs["num_detections"], expected.num_detections)
        assert np.array_equal(outputs["class_ids"], expected.class_ids)
        np.testing.assert_allclose(outputs["scores"], expected.scores, atol=REAL_MODEL_SCORES)
        np.testing.assert_allclose(outputs["boxes"], expected.boxes, atol=REAL_MODEL_BOXES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"box_coding": "polar"}, "attribute box_coding: expected a known name, got polar"),
        ({"max_detections": 0}, "attribute max_detections: expected"),
        ({"box_weights": [1.0, 2.0]}, "attribute box_weights: expected four numbers, got 2"),
        ({"multi_label": 7}, "attribute multi_label: expected 0 or 1, got 7"),
        ({"score_combination": "multiply"}, "expected 5 inputs for these attributes, got 4"),
        ({"class_specific_boxes": 1}, "input box_regression: expected shape"),
    ],
)
def test_what_does_not_fit_is_an_error_of_the_validation(
    core: openvino.Core, changes: dict[str, object], message: str
) -> None:
    attributes = CASES[0]
    operands = _operands(attributes)
    if "score_combination" in changes:
        attributes = DecodeNmsAttributes(box_coding="cxcywh")
    with pytest.raises(RuntimeError, match=message):
        core.read_model(_node_model(attributes, operands, **changes))


def test_a_threshold_out_of_range_is_an_error_of_the_run(core: openvino.Core) -> None:
    operands = _operands(CASES[0])
    compiled = core.compile_model(core.read_model(_node_model(CASES[0], operands)), "CPU")
    with pytest.raises(RuntimeError, match=r"score_threshold: expected a number in \[0, 1\], got 1.5"):
        compiled({**operands, "score_threshold": np.float32(1.5), "iou_threshold": np.float32(0.5)})


def test_an_export_keeps_the_node_and_detects_the_same(tmp_path: Path) -> None:
    source = save_colour_cells(tmp_path / "raw.onnx")
    for nms in ("graph", "plugin"):
        export(source, tmp_path / f"{nms}.onnx", options=ExportOptions(nms=nms))  # type: ignore[arg-type]
    folder = tmp_path / "plugin_openvino_model"
    export(source, folder, options=ExportOptions(format="openvino", nms="plugin"))
    (stored,) = folder.glob("*.xml")
    assert 'type="DecodeNMS" version="boxwright"' in stored.read_text()
    image = RANDOM.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    expected = Detector(tmp_path / "graph.onnx", backend="openvino", conf=0.4)(image)
    assert len(expected) > 0
    for path in (tmp_path / "plugin.onnx", folder):
        detector = Detector(path, backend="openvino", conf=0.4)
        operations = detector.backend._compiled.get_runtime_model().get_ops()  # type: ignore[attr-defined]
        types = [operation.get_rt_info()["layerType"].astype(str) for operation in operations]
        assert types.count("Reference") == 1  # as OpenVINO calls a node that runs its own `evaluate`
        found = detector(image)
        assert found.class_ids.tolist() == expected.class_ids.tolist()
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=REAL_MODEL_BOXES)


def test_without_the_plugin_the_export_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_openvino_plugin() is None
    with pytest.raises(UnsupportedError, match="run: boxwright doctor --build-plugins"):
        ExportOptions(format="openvino", nms="plugin")


def test_doctor_says_where_the_plugin_is(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from boxwright.cli.main import main

    assert main(["doctor", "--build-plugins", "--json"]) == 0
    plugins = json.loads(capsys.readouterr().out)["plugins"]
    assert plugins["openvino"] == {"path": str(plugin), "built_now": False, "problem": None}


def test_a_build_that_cannot_be_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("boxwright.runtimes.plugin_build.find_program", lambda name: None)
    with pytest.raises(UnsupportedError, match="expected the program cmake") as caught:
        build_openvino_plugin()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
