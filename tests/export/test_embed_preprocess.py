"""Graphs that take pixels: the same input of the network as `Preprocess` makes, and the same detections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

import foreign_models
from boxwright.core.errors import InputError, ManifestError, UnsupportedError
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess import Preprocess
from boxwright.export import ExportOptions, export
from boxwright.export.embed_preprocess import MASK_NAME, embed_preprocess
from boxwright.export.onnx_files import INPUT_NAME
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.onnxruntime import OnnxRuntimeBackend
from foreign_models import LABELS
from tolerances import EMBEDDED_BOXES, EMBEDDED_GREY_LEVELS, EMBEDDED_PIXELS, EMBEDDED_SCORES, EMBEDDED_VALUES

Run = Callable[[NDArray[np.uint8]], list[NDArray[Any]]]
SIZE_HW = (72, 104)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EDGE = Preprocess(size_hw=SIZE_HW, resize="shortest_edge", shortest_edge=40, max_size=90, mean=MEAN, std=STD)
CASES = {
    "letterbox": Preprocess(size_hw=SIZE_HW),
    "letterbox of mean and std": Preprocess(size_hw=SIZE_HW, mean=MEAN, std=STD, pad_value=(10.0, 20.0, 30.0)),
    "letterbox topleft": Preprocess(size_hw=SIZE_HW, resize="letterbox_topleft", channel_order="BGR", scale=1.0),
    "stretch": Preprocess(size_hw=SIZE_HW, resize="stretch", mean=MEAN, std=STD),
    "shortest edge": EDGE,
    "shortest edge that must fit": replace(EDGE, shortest_edge=200, max_size=300),
    "shortest edge with a mask": replace(EDGE, pixel_mask=True),
    "letterbox with a mask": Preprocess(size_hw=SIZE_HW, pixel_mask=True),
    "in float": Preprocess(size_hw=SIZE_HW, resize_in_float=True),
    "cubic": Preprocess(size_hw=SIZE_HW, interpolation="cubic", scale=1.0),
}
SIZES_HW = [(72, 104), (71, 105), (144, 208), (333, 257), (90, 31), (41, 300), (2, 3)]


def passes_through(preprocess: Preprocess) -> ir.Model:
    """A graph whose outputs are its inputs and `boxes`, one larger than the canvas, with the preprocessing inside."""
    assert preprocess.size_hw is not None
    height, width = preprocess.size_hw
    inputs = [ir.val(INPUT_NAME, ir.DataType.FLOAT, ["batch", 3, height, width])]
    if preprocess.pixel_mask:
        inputs.append(ir.val(MASK_NAME, ir.DataType.INT64, ["batch", height, width]))
    corners = np.array([[[-5, -5, width + 5, height + 5], [20, 25, 60.5, 50], [0, 0, 0, 0]]], np.float32)
    nodes = [ir.node("Identity", [value]) for value in inputs]
    nodes.append(ir.node("Constant", [], attributes={"value": ir.tensor(corners)}))
    names = ("tensor", "mask", "boxes") if preprocess.pixel_mask else ("tensor", "boxes")
    shapes = [value.shape for value in inputs] + [ir.Shape(corners.shape)]
    for node, name, shape in zip(nodes, names, shapes, strict=True):
        output = node.outputs[0]
        output.name, output.shape = name, shape
        output.type = ir.TensorType(ir.DataType.INT64 if name == "mask" else ir.DataType.FLOAT)
    outputs = [node.outputs[0] for node in nodes]
    model = ir.Model(ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": 17}, name="same"), ir_version=8)
    embed_preprocess(model, preprocess, gives_detections=True)
    return model


def open_onnxruntime(model: bytes) -> Run:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda images: list(session.run(None, {INPUT_NAME: images}))


def open_openvino(model: bytes) -> Run:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: list(compiled({INPUT_NAME: images}).values())


def image_of(size_hw: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size_hw, 3), dtype=np.uint8)


@pytest.mark.parametrize("engine", [open_onnxruntime, open_openvino])
@pytest.mark.parametrize("name", CASES)
def test_the_network_gets_what_preprocess_makes(name: str, engine: Callable[[bytes], Run]) -> None:
    preprocess = CASES[name]
    model = ir.to_proto(passes_through(preprocess))
    onnx.checker.check_model(model, full_check=True)
    run = engine(model.SerializeToString())
    grey_level = preprocess.scale / min(preprocess.std)
    num_pixels, num_off = 0, 0
    for size_hw in SIZES_HW:
        images = [image_of(size_hw, seed) for seed in range(2)]
        if min(preprocess_size(preprocess, size_hw)) < 2:
            continue
        wanted = preprocess.apply_batch(images)
        tensor, *masks, boxes = run(np.stack(images))
        difference = np.abs(tensor - wanted.images)
        if preprocess.resize_in_float:
            assert difference.max() < EMBEDDED_VALUES, size_hw
        assert difference.max() <= (EMBEDDED_GREY_LEVELS + 1e-3) * grey_level, size_hw
        num_pixels, num_off = num_pixels + difference.size, num_off + int((difference > grey_level / 2).sum())
        if wanted.pixel_mask is not None:
            np.testing.assert_array_equal(masks[0], wanted.pixel_mask)
        corners = np.array([[-5, -5, SIZE_HW[1] + 5, SIZE_HW[0] + 5], [20, 25, 60.5, 50], [0, 0, 0, 0]], np.float32)
        np.testing.assert_allclose(boxes[0], wanted.transforms[0].to_original(corners), atol=1e-3)
    assert num_pixels > 100_000
    assert num_off <= EMBEDDED_PIXELS * num_pixels


def preprocess_size(preprocess: Preprocess, size_hw: tuple[int, int]) -> tuple[int, int]:
    assert preprocess.size_hw is not None
    factor = min(preprocess.size_hw[0] / size_hw[0], preprocess.size_hw[1] / size_hw[1])
    return int(size_hw[0] * factor), int(size_hw[1] * factor)


@pytest.mark.parametrize("resize", ["letterbox", "letterbox_topleft", "shortest_edge"])
def test_an_image_of_any_size_lies_where_it_is_planned(resize: str) -> None:
    """The mask shows it."""
    preprocess = Preprocess(
        size_hw=(31, 43), resize=resize, shortest_edge=30, max_size=40, pixel_mask=True  # type: ignore[arg-type]
    )  # fmt: skip
    run = open_onnxruntime(ir.to_proto(passes_through(preprocess)).SerializeToString())
    for height in range(2, 90, 3):
        for width in range(max(2, height // 8), min(8 * height, 130), 7):
            image = np.zeros((height, width, 3), np.uint8)
            if min(preprocess_size(preprocess, (height, width))) >= 2:
                mask = preprocess.apply_batch([image]).pixel_mask
                np.testing.assert_array_equal(run(image[None])[1], mask, err_msg=f"{width}x{height}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interpolation": "area"}, "interpolation by linear or cubic, got area"),
        ({"size_hw": None, "resize": "shortest_edge", "shortest_edge": 30, "max_size": 40}, "a fixed size"),
    ],
)
def test_what_onnx_has_not_is_refused(changes: dict[str, Any], message: str) -> None:
    model = passes_through(Preprocess(size_hw=SIZE_HW))
    with pytest.raises(UnsupportedError, match=message):
        embed_preprocess(model, replace(Preprocess(size_hw=SIZE_HW), **changes), gives_detections=False)


def adopted(folder: Path, out: str, batch: int | str = 1, **options: Any) -> Path:
    """The tests' YOLOv5, exported with these options."""
    source = foreign_models.yolov5(folder / "source.onnx", batch=batch)
    is_dynamic = not isinstance(batch, int)
    export(
        source,
        folder / out,
        head="yolov5",
        labels=LABELS,
        preprocess="yolov5",
        options=ExportOptions(dynamic=is_dynamic, batch=1 if is_dynamic else int(batch), **options),
    )
    return folder / out


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("nms", "batch", "format"),
    [("graph", 1, "onnx"), ("graph", 2, "onnx"), ("graph", "n", "onnx"), ("none", 1, "onnx"), ("none", "n", "onnx"),
     ("plugin", 1, "onnx"), ("graph", 1, "openvino"), ("none", "n", "openvino")],
)  # fmt: skip
def test_it_detects_what_the_plain_model_detects(
    tmp_path: Path, nms: str, batch: int | str, format: str, engine: str
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    if (format == "openvino") != (engine == "openvino") and format == "openvino":
        pytest.skip("ONNX Runtime opens no IR")
    if nms == "plugin" and engine == "openvino":
        pytest.skip("the node alone is tested with the extension")
    plain = adopted(tmp_path, "plain.onnx", batch, nms="none")
    name = "pixels.onnx" if format == "onnx" else "pixels_openvino_model"
    pixels = adopted(tmp_path, name, batch, nms=nms, format=format, embed_preprocess=True)
    images = [image_of((133, 201)), image_of((133, 201), 1), image_of((64, 77))]
    with (
        Detector(plain, backend="onnxruntime", conf=0.3) as reference,
        Detector(pixels, backend=engine, conf=0.3) as one,
    ):
        assert one.manifest.input_kind == "pixels"
        assert one.backend.inputs["images"].dtype == np.uint8
        for expected, found in zip(reference(images), one(images), strict=True):
            assert len(expected) > 3
            assert found.class_ids.tolist() == expected.class_ids.tolist()
            np.testing.assert_allclose(found.scores, expected.scores, atol=EMBEDDED_SCORES)
            np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=EMBEDDED_BOXES)


def test_the_boxes_of_the_graph_are_in_pixels_of_the_image(tmp_path: Path) -> None:
    """One call and no code."""
    path = adopted(tmp_path, "pixels.onnx", embed_preprocess=True)
    image = image_of((133, 201))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = ["num_detections", "boxes", "scores", "class_ids"]
    counts, boxes, scores, class_ids = session.run(names, {"images": image[None]})
    with Detector(path, conf=0.001) as detector:
        expected = detector(image)
    assert counts.tolist() == [[len(expected)]]
    np.testing.assert_array_equal(boxes[0, : len(expected)], expected.boxes_xyxy)
    np.testing.assert_array_equal(scores[0, : len(expected)], expected.scores)
    np.testing.assert_array_equal(class_ids[0, : len(expected)], expected.class_ids)
    assert boxes[..., 2].max() > foreign_models.WIDTH


def test_a_finished_model_of_ours_can_take_pixels(tmp_path: Path) -> None:
    plain = adopted(tmp_path, "plain.onnx")
    pixels = export(plain, tmp_path / "pixels.onnx", options=ExportOptions(embed_preprocess=True))
    assert pixels.manifest.input_kind == "pixels"
    assert pixels.manifest.stage == "detections"
    assert pixels.verification.matched_fraction == 1.0


@pytest.mark.parametrize(
    ("nms", "options", "message"),
    [
        ("graph", {"embed_preprocess": True}, "takes pixels already"),
        ("graph", {"max_det": 5}, "finished boxes"),
        ("graph", {"nms": "none"}, "finished boxes"),
        ("none", {"nms": "graph"}, "pass --nms none"),
    ],
)
def test_what_takes_pixels_stays_as_it_is(tmp_path: Path, nms: str, options: dict[str, Any], message: str) -> None:
    pixels = adopted(tmp_path, "pixels.onnx", nms=nms, embed_preprocess=True)
    with pytest.raises(UnsupportedError, match=message):
        export(pixels, tmp_path / "other.onnx", options=ExportOptions(**options))
    assert not (tmp_path / "other.onnx").exists()


def test_images_of_two_sizes_are_no_batch(tmp_path: Path) -> None:
    with (
        Detector(adopted(tmp_path, "pixels.onnx", "n", embed_preprocess=True)) as detector,
        pytest.raises(InputError, match="images of one size"),
    ):
        detector.preprocess([image_of((30, 40)), image_of((30, 41))])


def test_a_manifest_that_says_pixels_of_a_graph_of_tensors(tmp_path: Path) -> None:
    backend = OnnxRuntimeBackend.open(adopted(tmp_path, "plain.onnx"))
    assert backend.manifest_json is not None
    manifest = replace(Manifest.from_json(backend.manifest_json), input_kind="pixels")
    with pytest.raises(ManifestError, match="of uint8"):
        Detector.from_backend(backend, manifest)
