"""Adopting ONNX files that Boxwright did not make: foreign outputs become raw heads, and a manifest is added.

Each head is a function that takes the model, renames or rearranges its outputs into `box_regression`, `class_logits`
and `objectness`, and says how they are decoded. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from boxwright.core.decode_spec import Boxes, DecodeSpec, Grid, GridLevel, NmsSpec, Queries
from boxwright.core.errors import ModelFileError, UnsupportedError
from boxwright.export.graph_builder import GraphBuilder
from boxwright.export.onnx_files import INPUT_NAME

YOLOX_STRIDES = (8, 16, 32)
Adopter = Callable[[ir.Model, Path, tuple[int, int], int], DecodeSpec]


def input_size_hw(model: ir.Model, path: Path, wanted_hw: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of the one image input, which must be (B, 3, H, W).

    Args:
        model: the foreign model.
        path: of it, for messages.
        wanted_hw: what the user asked for; needed where the graph leaves it open.

    Raises:
        ModelFileError: where there is no such input.
        UnsupportedError: where the size is open and not given, or another than given.
    """
    names = {value.name for value in model.graph.initializers.values()}
    inputs = [value for value in model.graph.inputs if value.name not in names]
    shape = inputs[0].shape if inputs else None
    if shape is None or len(shape) != 4 or (isinstance(shape[1], int) and shape[1] != 3):
        raise ModelFileError(
            str(path),
            expected="an image input (B, 3, H, W)",
            got="none" if shape is None else str(shape),
            fix="adopt a detector that takes planar images",
        )
    size = tuple(side if isinstance(side, int) else None for side in shape[2:])
    if None in size and wanted_hw is None:
        raise UnsupportedError(
            str(path), expected="the size of the input", got="a graph that leaves it open", fix="pass --imgsz"
        )
    fixed = tuple(side if side is not None else asked for side, asked in zip(size, wanted_hw or (0, 0), strict=True))
    if wanted_hw is not None and fixed != wanted_hw:
        raise UnsupportedError(
            f"--imgsz {wanted_hw[0]}x{wanted_hw[1]}",
            expected=f"{fixed[0]}x{fixed[1]}, which the graph is made for",
            got="another size",
            fix="leave out --imgsz",
        )
    return int(fixed[0]), int(fixed[1])  # type: ignore[arg-type]


def adopt(model: ir.Model, path: Path, head: str, num_classes: int, size_hw: tuple[int, int]) -> DecodeSpec:
    """Turn a foreign model's outputs into raw heads; its image input becomes `images`.

    Args:
        model: changed.
        path: of its file.
        head: one of `HEADS`.
        num_classes: that the labels name.
        size_hw: of the input.

    Returns:
        How the raw heads are decoded.

    Raises:
        ModelFileError: where the outputs are not those of that head, or their classes are not as many as the labels.
        UnsupportedError: where the head is unknown.
    """
    if head not in HEADS:
        raise UnsupportedError("--head", expected="one of " + ", ".join(HEADS), got=repr(head), fix="pass one of these")
    names = {value.name for value in model.graph.initializers.values()}
    image_input = next(value for value in model.graph.inputs if value.name not in names)
    image_input.name = INPUT_NAME
    image_input.shape = ir.Shape([image_input.shape[0] if image_input.shape is not None else 1, 3, *size_hw])
    return HEADS[head](model, path, size_hw, num_classes)


def _adopt_yolox(model: ir.Model, path: Path, size_hw: tuple[int, int], num_classes: int) -> DecodeSpec:
    """(B, N, 5 + C): box, objectness and classes after the sigmoid; boxes relative to the grid, or decoded already."""
    output = _only_output(model, path, "(B, N, 5 + C)", rank=3)
    cells = [(size_hw[0] // stride, size_hw[1] // stride) for stride in YOLOX_STRIDES]
    _check_width(path, output.shape, 2, 5 + num_classes, num_classes)
    _check_count(path, output.shape, sum(rows * columns for rows, columns in cells))
    is_decoded = _boxes_are_in_pixels(path, output.name, size_hw)
    builder = GraphBuilder("adopt")
    _replace_outputs(
        model,
        builder,
        {
            "box_regression": _columns(builder, output, 0, 4),
            "class_logits": _columns(builder, output, 5, 5 + num_classes),
            "objectness": builder.op("Squeeze", _columns(builder, output, 4, 5), [2]),
        },
    )
    if is_decoded:
        return _decoded_boxes(num_classes, with_objectness=True)
    return Grid(
        num_classes=num_classes,
        box_coding="yolox",
        levels=tuple(
            GridLevel(grid_hw=grid_hw, stride=float(stride))
            for grid_hw, stride in zip(cells, YOLOX_STRIDES, strict=True)
        ),
        score_activation="none",
        objectness_activation="none",
        score_combination="multiply",
        nms=NmsSpec(),
    )


def _adopt_yolov5(model: ir.Model, path: Path, size_hw: tuple[int, int], num_classes: int) -> DecodeSpec:
    """(B, N, 5 + C): centre, width and height in pixels, objectness and classes after the sigmoid."""
    output = _only_output(model, path, "(B, N, 5 + C)", rank=3)
    _check_width(path, output.shape, 2, 5 + num_classes, num_classes)
    builder = GraphBuilder("adopt")
    _replace_outputs(
        model,
        builder,
        {
            "box_regression": _columns(builder, output, 0, 4),
            "class_logits": _columns(builder, output, 5, 5 + num_classes),
            "objectness": builder.op("Squeeze", _columns(builder, output, 4, 5), [2]),
        },
    )
    return _decoded_boxes(num_classes, with_objectness=True)


def _adopt_yolov8(model: ir.Model, path: Path, size_hw: tuple[int, int], num_classes: int) -> DecodeSpec:
    """(B, 4 + C, N): centre, width and height in pixels, classes after the sigmoid."""
    output = _only_output(model, path, "(B, 4 + C, N)", rank=3)
    _check_width(path, output.shape, 1, 4 + num_classes, num_classes)
    builder = GraphBuilder("adopt")
    rows = builder.op("Transpose", output, perm=[0, 2, 1])  # (B, N, 4 + C)
    _replace_outputs(
        model,
        builder,
        {
            "box_regression": _columns(builder, rows, 0, 4),
            "class_logits": _columns(builder, rows, 4, 4 + num_classes),
        },
    )
    return _decoded_boxes(num_classes, with_objectness=False)


def _adopt_ssd(model: ir.Model, path: Path, size_hw: tuple[int, int], num_classes: int) -> DecodeSpec:
    """`scores` (B, N, 1 + C) after the softmax, background first, and `boxes` (B, N, 4) as corners from 0 to 1."""
    scores, boxes = _pair(model, path, "scores (B, N, 1 + C) and boxes (B, N, 4)")
    _check_width(path, scores.shape, 2, 1 + num_classes, num_classes)
    builder = GraphBuilder("adopt")
    scale = builder.constant(np.array([size_hw[1], size_hw[0]] * 2, dtype=np.float32))
    _replace_outputs(
        model,
        builder,
        {"box_regression": builder.op("Mul", boxes, scale), "class_logits": builder.op("Identity", scores)},
    )
    return Boxes(
        num_classes=num_classes,
        score_activation="none",
        background_class=0,
        multi_label=True,
        nms=NmsSpec(pre_nms_top_k=200, top_k_scope="class"),
    )


def _adopt_detr(model: ir.Model, path: Path, size_hw: tuple[int, int], num_classes: int) -> DecodeSpec:
    """`logits` (B, Q, C + 1), no object last, and `pred_boxes` (B, Q, 4) as centre and size from 0 to 1."""
    logits, boxes = _pair(model, path, "logits (B, Q, C + 1) and pred_boxes (B, Q, 4)")
    width = _dimension(logits.shape, 2)
    # RT-DETR has a sigmoid for each class and none for "no object".
    has_background = width == num_classes + 1
    if not has_background:
        _check_width(path, logits.shape, 2, num_classes, num_classes)
    num_queries = _dimension(logits.shape, 1)
    if num_queries is None:
        raise UnsupportedError(
            str(path), expected="a fixed number of queries", got="one left open", fix="export it with static shapes"
        )
    builder = GraphBuilder("adopt")
    _replace_outputs(
        model,
        builder,
        {"box_regression": builder.op("Identity", boxes), "class_logits": builder.op("Identity", logits)},
    )
    return Queries(
        num_classes=num_classes,
        num_queries=num_queries,
        score_activation="softmax" if has_background else "sigmoid",
        background_class=num_classes if has_background else -1,
        multi_label=not has_background,
        scale_wh=(float(size_hw[1]), float(size_hw[0])),
        max_detections=min(num_queries, 300),
    )


HEADS: dict[str, Adopter] = {
    "yolox": _adopt_yolox,
    "yolov5": _adopt_yolov5,
    "yolov8": _adopt_yolov8,
    "ssd": _adopt_ssd,
    "detr": _adopt_detr,
}


def _decoded_boxes(num_classes: int, *, with_objectness: bool) -> Boxes:
    return Boxes(
        num_classes=num_classes,
        box_format="cxcywh",
        score_activation="none",
        objectness_activation="none",
        score_combination="multiply" if with_objectness else "none",
        nms=NmsSpec(),
    )


def _boxes_are_in_pixels(path: Path, output_name: str | None, size_hw: tuple[int, int]) -> bool:
    """Whether a YOLOX file decodes its boxes itself, seen from what it gives for a grey image.

    Undecoded centres are offsets of a few cells; decoded ones spread over the whole input.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = np.full((1, 3, *size_hw), 0.5, dtype=np.float32)
    values = session.run([output_name], {session.get_inputs()[0].name: image})[0]
    return bool(np.ptp(values[0, :, 0]) > size_hw[1] / 2)


def _only_output(model: ir.Model, path: Path, expected: str, *, rank: int) -> ir.Value:
    outputs = model.graph.outputs
    shape = outputs[0].shape
    if len(outputs) != 1 or shape is None or len(shape) != rank:
        raise _wrong_outputs(model, path, f"one output {expected}")
    return outputs[0]


def _pair(model: ir.Model, path: Path, expected: str) -> tuple[ir.Value, ir.Value]:
    """The class output and the box output, told apart by their width of 4."""
    outputs = list(model.graph.outputs)
    boxes = [value for value in outputs if _dimension(value.shape, 2) == 4]
    classes = [value for value in outputs if value.shape is not None and len(value.shape) == 3 and value not in boxes]
    if len(boxes) == 2 and not classes:  # three classes and a background are four as well: go by the names
        boxes = [value for value in outputs if "box" in (value.name or "")]
        classes = [value for value in outputs if value not in boxes]
    if len(boxes) != 1 or len(classes) != 1:
        raise _wrong_outputs(model, path, expected)
    return classes[0], boxes[0]


def _wrong_outputs(model: ir.Model, path: Path, expected: str) -> ModelFileError:
    found = ", ".join(f"{value.name} {value.shape}" for value in model.graph.outputs)
    return ModelFileError(str(path), expected=expected, got=found, fix="pass the --head that the file has")


def _dimension(shape: ir.Shape | None, axis: int) -> int | None:
    if shape is None or len(shape) <= axis:
        return None
    size = shape[axis]
    return size if isinstance(size, int) else None


def _check_width(path: Path, shape: ir.Shape | None, axis: int, expected: int, num_classes: int) -> None:
    width = _dimension(shape, axis)
    if width is not None and width != expected:
        raise ModelFileError(
            str(path),
            expected=f"an output of width {expected} for {num_classes} labels",
            got=f"{width}, which is {num_classes + width - expected} classes",
            fix="pass the --labels that it was trained on, or another --head",
        )


def _check_count(path: Path, shape: ir.Shape | None, expected: int) -> None:
    count = _dimension(shape, 1)
    if count is not None and count != expected:
        raise ModelFileError(
            str(path),
            expected=f"{expected} boxes, those of strides {YOLOX_STRIDES}",
            got=str(count),
            fix="pass another --head",
        )


def _columns(builder: GraphBuilder, values: ir.Value, start: int, stop: int) -> ir.Value:
    """values[:, :, start:stop]."""
    return builder.op("Slice", values, [start], [stop], [2])


def _replace_outputs(model: ir.Model, builder: GraphBuilder, outputs: dict[str, ir.Value]) -> None:
    """Make these the graph's outputs, under the raw heads' names."""
    taken = {value.name: value for node in model.graph for value in node.outputs}
    for name, value in outputs.items():
        if name in taken and taken[name] is not value:
            taken[name].name = f"foreign_{name}"
        value.name = name
    model.graph.extend(builder.nodes)
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs.values())


def raise_opset(model: ir.Model, path: Path, opset: int) -> ir.Model:
    """The same model in a newer operator set, where its own is older.

    Raises:
        UnsupportedError: where it cannot be converted.
    """
    current = model.graph.opset_imports.get("", 0)
    if current >= opset:
        return model
    try:
        return ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), opset))
    except Exception as error:  # the converter raises RuntimeError and others of its own
        raise UnsupportedError(
            str(path),
            expected=f"operators that exist in opset {opset}",
            got=f"opset {current}, which does not convert ({str(error).splitlines()[0][:200]})",
            fix=f"export the model with opset {opset} where it was made",
        ) from error
