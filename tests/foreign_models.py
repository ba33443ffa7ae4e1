"""Small detectors in ONNX whose outputs look like those of other people's exports, with random but fixed weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

HEIGHT, WIDTH = 64, 96
STRIDES = (8, 16, 32)
NUM_CLASSES = 3
LABELS = "ant,bee,cat"
NUM_QUERIES = 96  # the cells of stride 8


class Net:
    """Collects the nodes of a model."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(seed)

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        name = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def constant(self, array: NDArray[np.generic]) -> str:
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def cells(self, images: str, stride: int, channels: int, spread: float = 2.0) -> str:
        """(B, channels, H / stride * W / stride), varying from cell to cell and with the image."""
        pooled = self.op("AveragePool", images, kernel_shape=[stride] * 2, strides=[stride] * 2)
        weight = self.constant(self.random.normal(0, spread, (channels, 3, 1, 1)).astype(np.float32))
        rows, columns = HEIGHT // stride, WIDTH // stride
        place = self.constant(self.random.normal(0, spread, (1, channels, rows, columns)).astype(np.float32))
        values = self.op("Add", self.op("Conv", pooled, weight), place)
        shape = self.constant(np.array([0, channels, rows * columns], np.int64))
        return self.op("Reshape", values, shape)

    def part(self, values: str, start: int, stop: int, axis: int) -> str:
        ends = (self.constant(np.array([number], np.int64)) for number in (start, stop, axis))
        return self.op("Slice", values, *ends)

    def save(self, path: Path, outputs: dict[str, str], *, batch: int | str = 1, opset: int = 17) -> Path:
        """Write the model; each output gets its name through an Identity."""
        for name, value in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name]))
        image = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [batch, 3, HEIGHT, WIDTH])
        graph = helper.make_graph(
            self.nodes,
            "foreign",
            [image],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.initializers,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        model = onnx.shape_inference.infer_shapes(model)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def pixel_boxes(net: Net, cells: str) -> str:
    """(B, 4, N): centres anywhere in the input, sizes from 4 to 40 pixels, of raw numbers (B, 4, N)."""
    unit = net.op("Sigmoid", cells)
    scale = net.constant(np.array([WIDTH, HEIGHT, 36, 36], np.float32).reshape(1, 4, 1))
    offset = net.constant(np.array([0, 0, 4, 4], np.float32).reshape(1, 4, 1))
    return net.op("Add", net.op("Mul", unit, scale), offset)


def yolox(path: Path, *, decoded: bool = False, opset: int = 17) -> Path:
    net = Net()
    levels = []
    for stride in STRIDES:
        cells = net.cells("input.1", stride, 5 + NUM_CLASSES, spread=0.5)
        boxes = net.part(cells, 0, 4, 1)
        if decoded:
            boxes = _decode_yolox(net, boxes, stride)
        levels.append(net.op("Concat", boxes, net.op("Sigmoid", net.part(cells, 4, 99, 1)), axis=1))
    joined = net.op("Concat", *levels, axis=2)
    return net.save(path, {"output": net.op("Transpose", joined, perm=[0, 2, 1])}, opset=opset)


def _decode_yolox(net: Net, boxes: str, stride: int) -> str:
    y, x = np.meshgrid(np.arange(HEIGHT // stride), np.arange(WIDTH // stride), indexing="ij")
    grid = net.constant(np.stack([x.ravel(), y.ravel()]).astype(np.float32)[None])  # (1, 2, N)
    factor = net.constant(np.array(stride, np.float32))
    centres = net.op("Mul", net.op("Add", net.part(boxes, 0, 2, 1), grid), factor)
    sizes = net.op("Mul", net.op("Exp", net.part(boxes, 2, 4, 1)), factor)
    return net.op("Concat", centres, sizes, axis=1)


def yolov5(path: Path, *, batch: int | str = 1, with_maps: bool = False) -> Path:
    net = Net()
    cells = net.cells("input.1", 8, 5 + NUM_CLASSES)
    boxes = pixel_boxes(net, net.part(cells, 0, 4, 1))
    joined = net.op("Concat", boxes, net.op("Sigmoid", net.part(cells, 4, 99, 1)), axis=1)
    outputs = {"output0": net.op("Transpose", joined, perm=[0, 2, 1])}
    if with_maps:
        shape = net.constant(np.array([0, 1, 5 + NUM_CLASSES, HEIGHT // 8, WIDTH // 8], np.int64))
        outputs["map"] = net.op("Reshape", cells, shape)
    return net.save(path, outputs, batch=batch)


def yolov8(path: Path, *, batch: int | str = 1, anchors_first: bool = False) -> Path:
    net = Net()
    cells = net.cells("input.1", 8, 4 + NUM_CLASSES)
    boxes = pixel_boxes(net, net.part(cells, 0, 4, 1))
    joined = net.op("Concat", boxes, net.op("Sigmoid", net.part(cells, 4, 99, 1)), axis=1)
    output = net.op("Transpose", joined, perm=[0, 2, 1]) if anchors_first else joined
    return net.save(path, {"output0": output}, batch=batch)


def ssd(path: Path, *, softmax: bool = True, background: bool = True, relative: bool = True) -> Path:
    net = Net()
    cells = net.cells("input.1", 8, 4 + NUM_CLASSES + background)
    boxes = pixel_boxes(net, net.part(cells, 0, 4, 1))
    half = net.op("Mul", net.part(boxes, 2, 4, 1), net.constant(np.array(0.5, np.float32)))
    centres = net.part(boxes, 0, 2, 1)
    corners = net.op("Concat", net.op("Sub", centres, half), net.op("Add", centres, half), axis=1)
    corners = net.op("Transpose", corners, perm=[0, 2, 1])
    if relative:
        corners = net.op("Div", corners, net.constant(np.array([WIDTH, HEIGHT] * 2, np.float32)))
    scores = net.op("Transpose", net.part(cells, 4, 99, 1), perm=[0, 2, 1])
    if softmax:
        scores = net.op("Softmax", scores, axis=2) if background else net.op("Sigmoid", scores)
    return net.save(path, {"scores": scores, "boxes": corners})


def detr(path: Path, *, background: bool = True) -> Path:
    net = Net()
    cells = net.cells("input.1", 8, 4 + NUM_CLASSES + background)
    boxes = net.op("Sigmoid", net.op("Transpose", net.part(cells, 0, 4, 1), perm=[0, 2, 1]))
    logits = net.op("Transpose", net.part(cells, 4, 99, 1), perm=[0, 2, 1])
    return net.save(path, {"logits": logits, "pred_boxes": boxes})
