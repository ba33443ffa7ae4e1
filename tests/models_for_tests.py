"""Tiny models whose detections can be told by looking at the image.

The "colour cells" model divides an image of 64x48 pixels into cells of 8x8. Each cell has a box about its centre, and
the mean of each colour channel is the logit of a class: a red square is a detection of class "red" in its cell.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from boxwright.core.decode_spec import Grid, GridLevel, NmsSpec
from boxwright.core.manifest import METADATA_KEY, Manifest
from boxwright.core.preprocess import Preprocess

HEIGHT, WIDTH, STRIDE = 48, 64, 8
ROWS, COLUMNS = HEIGHT // STRIDE, WIDTH // STRIDE
NUM_CELLS = ROWS * COLUMNS
CLASS_NAMES = ("blue", "green", "red")
MAX_DETECTIONS = 5
# A box is twice as large as its cell, so neighbours overlap by 1/3.
BOX_SIDE = 2 * STRIDE
LOGIT_SCALE = 20.0
DEFAULT_SCORE_THRESHOLD, DEFAULT_IOU_THRESHOLD = 0.001, 0.7


def colour_cells_manifest(stage: str = "raw", **changes: object) -> Manifest:
    """The manifest of the model; `changes` replaces fields."""
    fields: dict[str, object] = {
        "family": "cells",
        "variant": "cells-test",
        "class_names": CLASS_NAMES,
        "preprocess": Preprocess(
            size_hw=(HEIGHT, WIDTH), resize="letterbox_topleft", channel_order="BGR", pad_value=(0.0, 0.0, 0.0)
        ),
        "decode": Grid(
            num_classes=len(CLASS_NAMES),
            box_coding="yolox",
            levels=(GridLevel(grid_hw=(ROWS, COLUMNS), stride=float(STRIDE)),),
            nms=NmsSpec(),
            max_detections=MAX_DETECTIONS,
        ),
        "stage": stage,
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def colour_cells_onnx(
    stage: str = "raw",
    *,
    batch: int | None = 1,
    thresholds: str = "defaulted",
    manifest: Manifest | str | None = None,
) -> onnx.ModelProto:
    """The model.

    Args:
        stage: `raw`, or `detections` with a stand-in for NMS that keeps the best box alone where the IoU threshold
            is below 0.5.
        batch: None leaves it open.
        thresholds: of stage `detections`: `defaulted` inputs, or `constant`.
        manifest: its JSON or itself; None for that of the stage; an empty string for no manifest.
    """
    size: int | str = batch if batch is not None else "batch"
    constants = {
        "scale": np.array(LOGIT_SCALE, np.float32),
        "half": np.array(0.5, np.float32),
        "heads_shape": np.array([0, len(CLASS_NAMES), NUM_CELLS], np.int64),
        "cell_box": np.array([[[0.5, 0.5, np.log(2.0), np.log(2.0)]]], np.float32),
        "box_shape": np.array([NUM_CELLS, 4], np.int64),
    }
    nodes = [
        helper.make_node("AveragePool", ["images"], ["means"], kernel_shape=[STRIDE] * 2, strides=[STRIDE] * 2),
        helper.make_node("Sub", ["means", "half"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["logits"]),
        helper.make_node("Reshape", ["logits", "heads_shape"], ["logits_by_class"]),  # (B, C, N)
        helper.make_node("Transpose", ["logits_by_class"], ["class_logits"], perm=[0, 2, 1]),  # (B, N, C)
        helper.make_node("Shape", ["class_logits"], ["batch_of_heads"], start=0, end=1),
        helper.make_node("Concat", ["batch_of_heads", "box_shape"], ["all_box_shape"], axis=0),
        helper.make_node("Expand", ["cell_box", "all_box_shape"], ["box_regression"]),  # (B, N, 4)
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, [size, 3, HEIGHT, WIDTH])]
    if stage == "raw":
        outputs = [
            helper.make_tensor_value_info("box_regression", TensorProto.FLOAT, [size, NUM_CELLS, 4]),
            helper.make_tensor_value_info("class_logits", TensorProto.FLOAT, [size, NUM_CELLS, len(CLASS_NAMES)]),
        ]
    else:
        nodes += _detection_nodes(constants)
        outputs = [
            helper.make_tensor_value_info("num_detections", TensorProto.INT32, [size, 1]),
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [size, MAX_DETECTIONS, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [size, MAX_DETECTIONS]),
            helper.make_tensor_value_info("class_ids", TensorProto.INT32, [size, MAX_DETECTIONS]),
        ]
        constants["score_threshold"] = np.array([DEFAULT_SCORE_THRESHOLD], np.float32)
        constants["iou_threshold"] = np.array([DEFAULT_IOU_THRESHOLD], np.float32)
        if thresholds == "defaulted":
            inputs += [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
                for name in ("score_threshold", "iou_threshold")
            ]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "colour_cells", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if manifest is None:
        manifest = colour_cells_manifest(stage)
    text = manifest if isinstance(manifest, str) else manifest.to_json()
    if text:
        helper.set_model_props(model, {METADATA_KEY: text})
    onnx.checker.check_model(model)
    return model


def _detection_nodes(constants: dict[str, NDArray[np.generic]]) -> list[onnx.NodeProto]:
    """Sigmoid, best class of a cell, top-k, thresholds: the four outputs of DecodeNMS."""
    rows, columns = np.meshgrid(np.arange(ROWS), np.arange(COLUMNS), indexing="ij")
    centres = (np.stack([columns.ravel(), rows.ravel()], axis=1) + 0.5) * STRIDE
    corners = np.concatenate([centres - BOX_SIDE / 2, centres + BOX_SIDE / 2], axis=1).astype(np.float32)
    constants |= {
        "corners": corners,  # (N, 4)
        "top": np.array([MAX_DETECTIONS], np.int64),
        "last_axis": np.array([2], np.int64),
        "ranks": np.arange(MAX_DETECTIONS, dtype=np.int32)[None],
        "axis_1": np.array([1], np.int64),
        "zero": np.array(0, np.float32),
        "none": np.array(-1, np.int32),
        "one_box": np.array(1, np.int32),
        "all_boxes": np.array(MAX_DETECTIONS, np.int32),
        "low_iou": np.array([0.5], np.float32),
    }
    node = helper.make_node
    return [
        node("Sigmoid", ["class_logits"], ["all_scores"]),
        node("ReduceMax", ["all_scores"], ["best_scores"], axes=[2], keepdims=0),  # (B, N)
        node("ArgMax", ["all_scores"], ["best_classes"], axis=2, keepdims=0),
        node("TopK", ["best_scores", "top"], ["top_scores", "top_cells"], axis=1),  # (B, K)
        node("GatherElements", ["best_classes", "top_cells"], ["top_classes"], axis=1),
        node("Cast", ["top_classes"], ["top_class_ids"], to=TensorProto.INT32),
        node("Gather", ["corners", "top_cells"], ["top_boxes"], axis=0),  # (B, K, 4)
        node("Greater", ["top_scores", "score_threshold"], ["is_above"]),
        node("Less", ["iou_threshold", "low_iou"], ["is_strict"]),
        node("Where", ["is_strict", "one_box", "all_boxes"], ["limit"]),
        node("Less", ["ranks", "limit"], ["is_within"]),
        node("And", ["is_above", "is_within"], ["is_kept"]),  # (B, K)
        node("Unsqueeze", ["is_kept", "last_axis"], ["is_kept_box"]),
        node("Cast", ["is_kept"], ["kept_counts"], to=TensorProto.INT32),
        node("ReduceSum", ["kept_counts", "axis_1"], ["num_detections"], keepdims=1),
        node("Where", ["is_kept", "top_scores", "zero"], ["scores"]),
        node("Where", ["is_kept", "top_class_ids", "none"], ["class_ids"]),
        node("Where", ["is_kept_box", "top_boxes", "zero"], ["boxes"]),
    ]


def save_colour_cells(path: Path, stage: str = "raw", **options: object) -> Path:
    """Write the model as an ONNX file, or with a folder's name as an OpenVINO IR with `rt_info`."""
    model = colour_cells_onnx(stage, **options)  # type: ignore[arg-type]
    if path.suffix == ".onnx":
        onnx.save(model, path)
        return path
    import openvino

    path.mkdir()
    defaulted = {"score_threshold", "iou_threshold"} & {entry.name for entry in model.graph.input}
    plain = [entry for entry in model.graph.initializer if entry.name not in defaulted]
    del model.graph.initializer[:]
    model.graph.initializer.extend(plain)
    ir = openvino.Core().read_model(model.SerializeToString())
    for entry in model.metadata_props:
        ir.set_rt_info(entry.value, entry.key)
    openvino.save_model(ir, path / f"{path.name}.xml", compress_to_fp16=False)
    return path


def colour_image(*cells: tuple[int, int, str], cell_pixels: int = STRIDE) -> NDArray[np.uint8]:
    """A black image with cells (row, column) filled with the colour of a class; half as bright for "dark red" etc.

    Args:
        cells: row, column and class name.
        cell_pixels: side of a cell in the image.
    """
    image = np.zeros((ROWS * cell_pixels, COLUMNS * cell_pixels, 3), np.uint8)
    for row, column, colour in cells:
        top, left = row * cell_pixels, column * cell_pixels
        level = 140 if colour.startswith("dark ") else 255
        channel = CLASS_NAMES.index(colour.removeprefix("dark "))
        image[top : top + cell_pixels, left : left + cell_pixels, channel] = level
    return image


def box_of_cell(row: int, column: int, cell_pixels: int = STRIDE) -> list[float]:
    """The detection of a cell, xyxy in pixels of the image, clipped to it."""
    centre_x, centre_y = (column + 0.5) * cell_pixels, (row + 0.5) * cell_pixels
    return [
        max(0.0, centre_x - cell_pixels),
        max(0.0, centre_y - cell_pixels),
        min(float(COLUMNS * cell_pixels), centre_x + cell_pixels),
        min(float(ROWS * cell_pixels), centre_y + cell_pixels),
    ]
