"""Puts resizing, padding and normalising into the graph, which then takes uint8 images of any size.

    images (B, 3, H, W) float32  ->  images (B, h, w, 3) uint8, BGR
    pixel_mask (B, H, W)         ->  no input any more

Where the graph gives detections, their boxes are brought back to pixels of the image as well: one call and no code.
Sizes are computed in whole numbers, which every engine has; `Preprocess.plan` rounds its quotients of float64 to the
same ones, but for a few sizes of images (1 in 100,000) whose exact quotient lies halfway.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from boxwright.core.errors import UnsupportedError
from boxwright.core.preprocess import Preprocess
from boxwright.export.graph_builder import GraphBuilder, free_names
from boxwright.export.onnx_files import INPUT_NAME

MASK_NAME = "pixel_mask"
# ONNX's Resize has OpenCV's pixel centres and borders; averaging over areas, as INTER_AREA does, it has not.
_INTERPOLATIONS: dict[str, dict[str, Any]] = {
    "linear": {"mode": "linear"},
    "cubic": {"mode": "cubic", "cubic_coeff_a": -0.75},
}


def embed_preprocess(model: ir.Model, preprocess: Preprocess, *, gives_detections: bool) -> None:
    """Change the graph's input from tensors to pixels.

    Args:
        model: changed.
        preprocess: that its input is made with.
        gives_detections: whether it has `boxes`, to be brought back to pixels of the image.

    Raises:
        UnsupportedError: where ONNX has no such resize, or the input has no fixed size.
    """
    size_hw = _check(preprocess)
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    tensor = inputs[INPUT_NAME]
    assert tensor.shape is not None
    batch = tensor.shape[0]
    symbol = batch if isinstance(batch, int) else batch.value
    pixels = ir.val(INPUT_NAME, ir.DataType.UINT8, [symbol, "height", "width", 3])
    placement = _Placement(GraphBuilder("preprocess"), preprocess, size_hw, pixels)
    known_batch = batch if isinstance(batch, int) else -1
    _replace(tensor, placement.tensor(known_batch))
    if MASK_NAME in inputs:
        mask = inputs[MASK_NAME]
        assert mask.dtype is not None
        _replace(mask, placement.mask(known_batch, mask.dtype))
        graph.inputs.remove(mask)
    graph.inputs[list(graph.inputs).index(tensor)] = pixels
    graph.insert_before(next(iter(graph)), placement.builder.nodes)
    if gives_detections:
        _bring_boxes_back(graph, placement)


def _check(preprocess: Preprocess) -> tuple[int, int]:
    if preprocess.interpolation not in _INTERPOLATIONS:
        raise _unsupported(
            "interpolation by " + " or ".join(_INTERPOLATIONS), f"{preprocess.interpolation}, which ONNX does not have"
        )
    if preprocess.size_hw is None:
        raise _unsupported("a fixed size of the network's input", "an open one")
    return preprocess.size_hw


def _unsupported(expected: str, got: str) -> UnsupportedError:
    fix = "leave it out; Detector and the C++ library preprocess by themselves"
    return UnsupportedError("--embed-preprocess", expected=expected, got=got, fix=fix)


def _replace(value: ir.Value, made: ir.Value) -> None:
    """Let what read an input read what is made in its place."""
    made.shape, made.type = value.shape, value.type
    ir.convenience.replace_all_uses_with(value, made)


class _Samples(NamedTuple):
    """Two source positions and their weights, 0 to 2048, for each position along a resized axis."""

    indices: tuple[ir.Value, ir.Value]  # (R,) int64
    weights: tuple[ir.Value, ir.Value]  # (R,) float32


class _Placement:
    """Where the image lies on the canvas, as one-element int64 vectors; and the canvas itself."""

    def __init__(
        self, builder: GraphBuilder, preprocess: Preprocess, size_hw: tuple[int, int], pixels: ir.Value
    ) -> None:
        self.builder = builder
        self._preprocess = preprocess
        self._size_hw = size_hw
        self._pixels = pixels
        shape = builder.op("Shape", pixels)
        self._batch, self.height, self.width = (builder.op("Slice", shape, [i], [i + 1], [0]) for i in range(3))
        self.resized_height, self.resized_width = self._resized()
        self.top = self.left = builder.value([0])
        if preprocess.resize == "letterbox":
            self.top = self._half(size_hw[0], self.resized_height)
            self.left = self._half(size_hw[1], self.resized_width)

    def tensor(self, batch: int) -> ir.Value:
        """The network's input (B, 3, H, W); `batch` is -1 where it is open."""
        b, preprocess = self.builder, self._preprocess
        resized = self._resized_as_float() if self._resizes_in_float else self._resized_as_bytes()
        if preprocess.channel_order == "RGB":
            resized = b.op("Gather", resized, [2, 1, 0], axis=1)
        padding = _per_channel(b, preprocess.pad_value)
        placed = b.op("Add", self._pad(b.op("Sub", resized, padding), num_leading=2), padding)
        factors = tuple(preprocess.scale / std for std in preprocess.std)
        offsets = tuple(-mean / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True))
        normalised = b.op("Add", b.op("Mul", placed, _per_channel(b, factors)), _per_channel(b, offsets))
        # The canvas has a fixed size, which no engine could tell from the padding.
        return b.op("Reshape", normalised, [batch, 3, *self._size_hw])

    @property
    def _resizes_in_float(self) -> bool:
        return self._preprocess.resize_in_float or self._preprocess.interpolation != "linear"

    def _resized_as_float(self) -> ir.Value:
        """(B, 3, h, w) by ONNX's own operator; rounded to whole grey levels where OpenCV gets bytes."""
        b, preprocess = self.builder, self._preprocess
        planes = b.op("Cast", b.op("Transpose", self._pixels, perm=[0, 3, 1, 2]), to=ir.DataType.FLOAT)
        sizes = b.op("Concat", self._batch, [3], self.resized_height, self.resized_width, axis=0)
        how = _INTERPOLATIONS[preprocess.interpolation]
        resized = b.op("Resize", planes, None, None, sizes, coordinate_transformation_mode="half_pixel", **how)
        if preprocess.resize_in_float:
            return resized
        return b.op("Min", b.op("Max", b.op("Round", resized), 0.0), 255.0)

    def _resized_as_bytes(self) -> ir.Value:
        """(B, 3, h, w) as OpenCV resizes bytes linearly: in whole numbers, with weights of 11 bits.

            columns: T = (p0 * a0 + p1 * a1) >> 4
            rows:    level = ((T0 * b0 >> 16) + (T1 * b1 >> 16) + 2) >> 2

        Resize would give another grey level in one pixel of twelve, and a brighter picture: what is shifted out here
        is an eighth of a level on average. This differs from OpenCV in less than one pixel of a thousand, by one level:
        OpenCV rounds each position to float32 before it weights the neighbours.
        """
        b = self.builder
        columns, rows = self._samples(self.width, self.resized_width), self._samples(self.height, self.resized_height)
        blended = self._blend(self._pixels, columns, axis=2, scale=1 / 16, cuts_each=False)  # (B, H, w, 3)
        quarters = self._blend(blended, rows, axis=1, scale=1 / 65536, cuts_each=True)  # (B, h, w, 3)
        levels = b.op("Floor", b.op("Add", b.op("Mul", quarters, 0.25), 0.5))
        return b.op("Transpose", b.op("Min", levels, 255.0), perm=[0, 3, 1, 2])

    def _samples(self, source: ir.Value, resized: ir.Value) -> _Samples:
        """What each output position of one axis is made of; its centre lies at (x + 0.5) * source / resized - 0.5."""
        b = self.builder
        doubled = b.op("Mul", resized, [2])
        # As a fraction of whole numbers, so that no precision of the arithmetic can move it.
        places = b.op("Add", b.op("Mul", b.op("Range", 0, b.op("Squeeze", resized, [0]), 1), [2]), [1])
        numerators = b.op("Max", b.op("Sub", b.op("Mul", places, source), resized), [0])
        first = b.op("Div", numerators, doubled)
        rest = b.op("Sub", numerators, b.op("Mul", first, doubled))
        fraction = b.op("Div", b.op("Cast", rest, to=ir.DataType.FLOAT), b.op("Cast", doubled, to=ir.DataType.FLOAT))
        second_weight = b.op("Round", b.op("Mul", fraction, 2048.0))
        last = b.op("Sub", source, [1])
        return _Samples(
            indices=(b.op("Min", first, last), b.op("Min", b.op("Add", first, [1]), last)),
            weights=(b.op("Sub", 2048.0, second_weight), second_weight),
        )

    def _blend(self, values: ir.Value, samples: _Samples, *, axis: int, scale: float, cuts_each: bool) -> ir.Value:
        """The weighted values of each position of axis 1 or 2 of (B, H, W, 3), cut off after or before adding."""
        b = self.builder
        parts = []
        for indices, weights in zip(samples.indices, samples.weights, strict=True):
            along_axis = b.op("Unsqueeze", b.op("Mul", weights, scale), [1] if axis == 2 else [1, 2])
            taken = b.op("Cast", b.op("Gather", values, indices, axis=axis), to=ir.DataType.FLOAT)
            part = b.op("Mul", taken, along_axis)
            parts.append(b.op("Floor", part) if cuts_each else part)
        total = b.op("Add", *parts)
        return total if cuts_each else b.op("Floor", total)

    def mask(self, batch: int, dtype: ir.DataType) -> ir.Value:
        """1 where the image lies on the canvas, 0 in the padding, (B, H, W)."""
        b = self.builder
        sizes = b.op("Concat", self._batch, self.resized_height, self.resized_width, axis=0)
        ones = b.op("ConstantOfShape", sizes, value=ir.tensor(np.ones(1, np.float32)))
        return b.op("Reshape", b.op("Cast", self._pad(ones, num_leading=1), to=dtype), [batch, *self._size_hw])

    def _pad(self, values: ir.Value, *, num_leading: int) -> ir.Value:
        """Zeros around the last two axes, up to the canvas."""
        if self._preprocess.resize == "stretch":
            return values
        b, rest = self.builder, [0] * num_leading
        bottom = b.op("Sub", b.op("Sub", [self._size_hw[0]], self.resized_height), self.top)
        right = b.op("Sub", b.op("Sub", [self._size_hw[1]], self.resized_width), self.left)
        pads = b.op("Concat", rest, self.top, self.left, rest, bottom, right, axis=0)
        return b.op("Pad", values, pads, 0.0)

    def _resized(self) -> tuple[ir.Value, ir.Value]:
        """Height and width of the image on the canvas."""
        if self._preprocess.resize == "stretch":
            return self.builder.value([self._size_hw[0]]), self.builder.value([self._size_hw[1]])
        fitting = self._fitting()
        return self._by_shortest_edge(fitting) if self._preprocess.resize == "shortest_edge" else fitting

    def _fitting(self) -> tuple[ir.Value, ir.Value]:
        """The largest sides of the image's shape that the canvas holds."""
        b, (canvas_h, canvas_w) = self.builder, self._size_hw
        # canvas_h / height <= canvas_w / width, without the division
        by_height, by_width = b.op("Mul", self.width, [canvas_h]), b.op("Mul", self.height, [canvas_w])
        height_decides = b.op("LessOrEqual", by_height, by_width)
        width_decides = b.op("LessOrEqual", by_width, by_height)
        resized_h = b.op("Where", height_decides, [canvas_h], self._quotient(by_width, self.width))
        resized_w = b.op("Where", width_decides, [canvas_w], self._quotient(by_height, self.height))
        return b.op("Max", resized_h, [1]), b.op("Max", resized_w, [1])

    def _by_shortest_edge(self, fitting: tuple[ir.Value, ir.Value]) -> tuple[ir.Value, ir.Value]:
        """The shorter side as asked for, the longer at most `max_size`; or what fits, where that is too large."""
        b, edge, most = self.builder, self._preprocess.shortest_edge, self._preprocess.max_size
        shorter, longer = b.op("Min", self.height, self.width), b.op("Max", self.height, self.width)
        # edge / shorter <= most / longer
        edge_decides = b.op("LessOrEqual", b.op("Mul", longer, [edge]), b.op("Mul", shorter, [most]))
        wanted_h, wanted_w = (
            b.op(
                "Where",
                edge_decides,
                b.op("Div", b.op("Mul", side, [edge]), shorter),
                b.op("Div", b.op("Mul", side, [most]), longer),
            )
            for side in (self.height, self.width)
        )
        fits_h = b.op("LessOrEqual", wanted_h, [self._size_hw[0]])
        fits = b.op("And", fits_h, b.op("LessOrEqual", wanted_w, [self._size_hw[1]]))
        return b.op("Where", fits, wanted_h, fitting[0]), b.op("Where", fits, wanted_w, fitting[1])

    def _quotient(self, numerator: ir.Value, denominator: ir.Value) -> ir.Value:
        """Cut off, or for `letterbox` rounded half to even."""
        b = self.builder
        whole = b.op("Div", numerator, denominator)
        if self._preprocess.resize != "letterbox":
            return whole
        twice_rest = b.op("Mul", b.op("Sub", numerator, b.op("Mul", whole, denominator)), [2])
        is_odd = b.op("Equal", b.op("Mod", whole, [2]), [1])
        is_half = b.op("Equal", twice_rest, denominator)
        rounds_up = b.op("Or", b.op("Greater", twice_rest, denominator), b.op("And", is_half, is_odd))
        return b.op("Add", whole, b.op("Cast", rounds_up, to=ir.DataType.INT64))

    def _half(self, canvas: int, resized: ir.Value) -> ir.Value:
        return self.builder.op("Div", self.builder.op("Sub", [canvas], resized), [2])


def _per_channel(builder: GraphBuilder, values: tuple[float, ...]) -> ir.Value:
    return builder.constant(np.array(values, dtype=np.float32).reshape(1, 3, 1, 1))


def _bring_boxes_back(graph: ir.Graph, placement: _Placement) -> None:
    """Boxes in pixels of the network's input become boxes in pixels of the image, clipped to it."""
    b = GraphBuilder("postprocess")
    index, boxes = next((i, value) for i, value in enumerate(graph.outputs) if value.name == "boxes")

    def as_corners(x: ir.Value, y: ir.Value) -> ir.Value:
        return b.op("Cast", b.op("Concat", x, y, x, y, axis=0), to=ir.DataType.FLOAT)  # (4,)

    offsets = as_corners(placement.left, placement.top)
    size = as_corners(placement.width, placement.height)
    scales = b.op("Div", as_corners(placement.resized_width, placement.resized_height), size)
    in_image = b.op("Div", b.op("Sub", boxes, offsets), scales)
    # Padding, which is box 0, stays what it is: offsets are not negative.
    clipped = b.op("Min", b.op("Max", in_image, 0.0), size)
    clipped.shape, clipped.type = boxes.shape, boxes.type
    free_names(graph, ("boxes",))
    clipped.name = "boxes"
    graph.outputs[index] = clipped
    graph.extend(b.nodes)
