"""HOG and a linear SVM as an ONNX graph of standard operators, from the file that OpenCV writes.

What slides a window over a pyramid is a convolution over each of its levels:

    roots of the grey levels -> gradients -> votes for 9 orientations       (1, 9, H, W)
    Gaussian, bilinear shares of a block's 4 cells: a grouped 16x16 Conv    (1, 36, rows, columns of blocks)
    L2-Hys normalisation of every block
    SVM: a Conv as large as the window, in blocks                           (1, 1, rows, columns of windows)

The heads are `box_regression` (the windows, known beforehand) and `class_logits` (the margins), so the file is a model
of stage `raw` like any other, and its detections are chosen by NMS and not by OpenCV's grouping. OpenCV computes angles
to about 0.3 degrees and rounds the pyramid's images in another way, so margins differ a little: `tests/tolerances.py`.

Source: Dalal and Triggs 2005; the constants are those of `cv2.HOGDescriptor`.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

import boxwright
from boxwright.core.decode_spec import Boxes, NmsSpec
from boxwright.core.errors import InputError, UnsupportedError
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess import Preprocess
from boxwright.export.graph_builder import GraphBuilder
from boxwright.export.onnx_files import INPUT_NAME, set_manifest, sha256_of_file, write_onnx
from boxwright.runtimes.opencv import open_hog_descriptor

FloatArray = NDArray[np.float32]
_OPSET, _IR_VERSION = 17, 8
_CELL, _BLOCK, _BINS = 8, 16, 9
_BLOCK_NUMBERS = 4 * _BINS
_MOST_LEVELS = 64


def hog_to_onnx(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    size_hw: tuple[int, int],
    class_name: str,
    scale_step: float = 1.2,
) -> Path:
    """Write a HOG detector of OpenCV as an ONNX file that `Detector` runs on any engine.

    Args:
        source: XML or YAML file of `cv2.HOGDescriptor`, with blocks of 16 pixels, cells of 8 and 9 bins.
        out: the ONNX file.
        size_hw: of the input, onto which images are letterboxed; not smaller than the window.
        class_name: of what it finds.
        scale_step: from a level of the pyramid to the next, above 1.

    Raises:
        ModelFileError: where the source is no HOG detector.
        UnsupportedError: where its layout is another.
        InputError: where the other arguments cannot be.
    """
    descriptor = open_hog_descriptor(source)
    _check_layout(descriptor, str(source))
    window_hw = (descriptor.winSize[1], descriptor.winSize[0])
    levels_hw = pyramid_sizes(size_hw, window_hw, scale_step)
    model = _graph(descriptor, levels_hw)
    set_manifest(
        model,
        Manifest(
            family="hog",
            variant=Path(source).stem,
            class_names=(class_name,),
            preprocess=Preprocess(size_hw=size_hw, channel_order="BGR", scale=1.0),
            decode=Boxes(num_classes=1, nms=NmsSpec()),
            stage="raw",
            score_threshold=0.5,
            iou_threshold=0.3,
            source_sha256=sha256_of_file(Path(source)),
            boxwright_version=boxwright.__version__,
        ),
    )
    write_onnx(model, Path(out))
    return Path(out)


def pyramid_sizes(
    size_hw: tuple[int, int], window_hw: tuple[int, int], scale_step: float
) -> tuple[tuple[int, int], ...]:
    """The sizes of the levels, the input itself first, as long as a window fits."""
    if scale_step <= 1.0:
        raise InputError("scale_step", expected="a number above 1", got=str(scale_step), fix="pass 1.05 to 1.5")
    sizes = []
    for level in range(_MOST_LEVELS):
        scale = scale_step**level
        level_hw = (round(size_hw[0] / scale), round(size_hw[1] / scale))
        if level_hw[0] < window_hw[0] or level_hw[1] < window_hw[1]:
            break
        sizes.append(level_hw)
    if not sizes:
        raise InputError(
            "size_hw",
            expected=f"at least the window of {window_hw[0]}x{window_hw[1]}",
            got=f"{size_hw[0]}x{size_hw[1]}",
            fix="pass a larger one",
        )
    return tuple(sizes)


def _check_layout(descriptor: cv2.HOGDescriptor, source: str) -> None:
    layout = (descriptor.blockSize, descriptor.blockStride, descriptor.cellSize, descriptor.nbins)
    wanted = ((_BLOCK, _BLOCK), (_CELL, _CELL), (_CELL, _CELL), _BINS)
    if layout != wanted or descriptor.signedGradient or not descriptor.gammaCorrection:
        raise UnsupportedError(
            source,
            expected=f"blocks, strides, cells and bins of {wanted}, unsigned, with gamma correction",
            got=f"{layout}",
            fix="run the file itself with the backend opencv",
        )


def _graph(descriptor: cv2.HOGDescriptor, levels_hw: tuple[tuple[int, int], ...]) -> ir.Model:
    size_hw, window_hw = levels_hw[0], (descriptor.winSize[1], descriptor.winSize[0])
    images = ir.Value(name=INPUT_NAME, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1, 3, *size_hw]))
    builder = GraphBuilder("hog")
    logits, boxes = [], []
    for index, level_hw in enumerate(levels_hw):
        level = images if index == 0 else _resized(builder, images, level_hw)
        margins = _margins(builder, level, level_hw, descriptor)
        logits.append(builder.op("Reshape", margins, [1, -1, 1]))
        boxes.append(window_boxes(level_hw, size_hw, window_hw))
    class_logits = builder.op("Concat", *logits, axis=1)
    class_logits.name = "class_logits"
    num_windows = sum(len(level) for level in boxes)
    class_logits.shape, class_logits.type = ir.Shape([1, num_windows, 1]), ir.TensorType(ir.DataType.FLOAT)
    box_regression = builder.op("Identity", builder.constant(np.concatenate(boxes)[None]))
    box_regression.name = "box_regression"
    box_regression.shape, box_regression.type = ir.Shape([1, num_windows, 4]), ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [images], [box_regression, class_logits], nodes=builder.nodes, opset_imports={"": _OPSET}, name="hog"
    )
    return ir.Model(graph, ir_version=_IR_VERSION, producer_name="boxwright")


def _resized(builder: GraphBuilder, images: ir.Value, level_hw: tuple[int, int]) -> ir.Value:
    resized = builder.op("Resize", images, None, None, [1, 3, *level_hw], mode="linear")
    return builder.op("Round", resized)  # OpenCV's levels are of bytes


def _margins(
    builder: GraphBuilder, level: ir.Value, level_hw: tuple[int, int], descriptor: cv2.HOGDescriptor
) -> ir.Value:
    """The SVM's margins (1, 1, rows, columns) of all windows of a level, 8 pixels apart."""
    votes = _votes(builder, level, level_hw)  # (1, 9, H, W)
    shares = np.tile(cell_shares(_sigma(descriptor)), (_BINS, 1, 1, 1))  # (9 * 4, 1, 16, 16), of each bin the 4 cells
    blocks = builder.op("Conv", votes, builder.constant(shares), strides=[_CELL, _CELL], group=_BINS)
    blocks = _scaled(builder, blocks, 0.1 * _BLOCK_NUMBERS)
    blocks = builder.op("Min", blocks, float(descriptor.L2HysThreshold))
    blocks = _scaled(builder, blocks, 1e-3)
    weights = np.asarray(descriptor.svmDetector, dtype=np.float32).reshape(-1)  # (D + 1,)
    kernel, bias = svm_kernel(weights, (descriptor.winSize[1], descriptor.winSize[0]))
    return builder.op("Conv", blocks, builder.constant(kernel), builder.constant(bias))


def _votes(builder: GraphBuilder, level: ir.Value, level_hw: tuple[int, int]) -> ir.Value:
    """Each pixel's gradient, shared out between the two nearest of 9 orientations, (1, 9, H, W)."""
    op = builder.op
    height, width = level_hw
    roots = op("Pad", op("Sqrt", op("Max", level, 0.0)), [0, 0, 1, 1, 0, 0, 1, 1], mode="reflect")
    dx = op("Sub", *(op("Slice", roots, [1, at], [height + 1, at + width], [2, 3]) for at in (2, 0)))
    dy = op("Sub", *(op("Slice", roots, [at, 1], [at + height, width + 1], [2, 3]) for at in (2, 0)))
    squared = op("Add", op("Mul", dx, dx), op("Mul", dy, dy))  # (1, 3, H, W)
    strongest = op("ArgMax", squared, axis=1, keepdims=1)  # the channel with the largest gradient speaks
    dx, dy, squared = (op("GatherElements", value, strongest, axis=1) for value in (dx, dy, squared))
    # There is no arctangent of two arguments; the orientation needs none, and 0 / 0 has no length to vote with.
    no_slope = op("Equal", dx, 0.0)
    angle = op("Atan", op("Div", dy, op("Where", no_slope, 1e-20, dx)))  # (-pi / 2, pi / 2)
    position = op("Mul", angle, _BINS / np.pi)
    position = op("Add", position, op("Where", op("Less", position, 0.0), float(_BINS), 0.0))
    bins = builder.constant(np.arange(_BINS, dtype=np.float32).reshape(1, _BINS, 1, 1) + np.float32(0.5))
    distance = op("Abs", op("Sub", position, bins))
    distance = op("Min", distance, op("Sub", float(_BINS), distance))  # the last bin is the first one's neighbour
    return op("Mul", op("Relu", op("Sub", 1.0, distance)), op("Sqrt", squared))


def _scaled(builder: GraphBuilder, blocks: ir.Value, epsilon: float) -> ir.Value:
    """Blocks divided by their length."""
    op = builder.op
    length = op("Sqrt", op("ReduceSum", op("Mul", blocks, blocks), [1], keepdims=1))
    return op("Div", blocks, op("Add", length, epsilon))


def cell_shares(sigma: float) -> FloatArray:
    """What a pixel of a block gives to each of its cells, (4, 1, 16, 16); cells are in columns, as OpenCV's are."""
    pixels = np.arange(_BLOCK)
    gauss = np.exp(-((pixels - _BLOCK / 2) ** 2) / (2 * sigma**2))
    centres = (np.arange(_BLOCK // _CELL) + 0.5) * _CELL
    near = np.maximum(0.0, 1.0 - np.abs(pixels + 0.5 - centres[:, None]) / _CELL)  # (2 cells, 16)
    share = gauss * near  # (2, 16)
    by_cell = [np.outer(share[row], share[column]) for column in range(2) for row in range(2)]
    return np.stack(by_cell).astype(np.float32)[:, None]


def svm_kernel(weights: FloatArray, window_hw: tuple[int, int]) -> tuple[FloatArray, FloatArray]:
    """The SVM as a Conv over blocks: (1, 36, rows, columns) and a bias (1,)."""
    rows, columns = (side // _CELL - 1 for side in window_hw)
    in_opencvs_order = weights[:-1].reshape(columns, rows, 4, _BINS)
    kernel = in_opencvs_order.transpose(3, 2, 1, 0).reshape(1, _BLOCK_NUMBERS, rows, columns)
    return np.ascontiguousarray(kernel), weights[-1:].copy()


def window_boxes(level_hw: tuple[int, int], size_hw: tuple[int, int], window_hw: tuple[int, int]) -> FloatArray:
    """The windows of a level (N, 4) xyxy in pixels of the input, row by row."""
    rows, columns = ((level_hw[axis] - window_hw[axis]) // _CELL + 1 for axis in (0, 1))
    y, x = np.meshgrid(np.arange(rows) * _CELL, np.arange(columns) * _CELL, indexing="ij")
    corners = np.stack([x, y, x + window_hw[1], y + window_hw[0]], axis=-1).reshape(-1, 4)
    scale_wh = np.array([size_hw[1] / level_hw[1], size_hw[0] / level_hw[0]] * 2)
    boxes: FloatArray = (corners * scale_wh).astype(np.float32)
    return boxes


def _sigma(descriptor: cv2.HOGDescriptor) -> float:
    """Of the Gaussian over a block; OpenCV chooses where it is negative."""
    return float(descriptor.winSigma) if descriptor.winSigma > 0 else 2 * _BLOCK / 8
