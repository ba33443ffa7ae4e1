"""The few operations that turn foreign outputs into raw heads, on arrays and on graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from boxwright.core.decode_nms_attributes import ObjectnessActivation
from boxwright.core.decode_spec import Boxes, DecodeSpec, NmsSpec
from boxwright.export.foreign import is_probability
from boxwright.export.graph_builder import GraphBuilder

T = TypeVar("T")


class Operations(Protocol[T]):
    """What a head may do with outputs (B, N, D)."""

    def columns(self, values: T, start: int, stop: int) -> T:
        """values[:, :, start:stop]."""

    def column(self, values: T, index: int) -> T:
        """values[:, :, index], (B, N)."""

    def swap(self, values: T) -> T:
        """(B, D, N) to (B, N, D)."""

    def scale(self, values: T, factors: tuple[float, ...]) -> T:
        """Each column times its factor."""


TakeApart = Callable[[Operations[Any], dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How foreign outputs become raw heads, and raw heads detections.

    Attributes:
        decode: of the raw heads.
        take_apart: (operations, outputs by name) -> raw heads by name.
    """

    decode: DecodeSpec
    take_apart: TakeApart


class ArrayOperations:
    """The operations on numpy arrays."""

    def columns(self, values: NDArray[Any], start: int, stop: int) -> NDArray[Any]:
        return np.ascontiguousarray(values[..., start:stop])

    def column(self, values: NDArray[Any], index: int) -> NDArray[Any]:
        return np.ascontiguousarray(values[..., index])

    def swap(self, values: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(values.transpose(0, 2, 1))

    def scale(self, values: NDArray[Any], factors: tuple[float, ...]) -> NDArray[Any]:
        return values * np.array(factors, dtype=np.float32)


class GraphOperations:
    """The operations as nodes of a graph, which `nodes` has afterwards."""

    def __init__(self) -> None:
        self._builder = GraphBuilder("adopt")

    @property
    def nodes(self) -> list[ir.Node]:
        return self._builder.nodes

    def columns(self, values: ir.Value, start: int, stop: int) -> ir.Value:
        return self._builder.op("Slice", values, [start], [stop], [2])

    def column(self, values: ir.Value, index: int) -> ir.Value:
        return self._builder.op("Squeeze", self.columns(values, index, index + 1), [2])

    def swap(self, values: ir.Value) -> ir.Value:
        return self._builder.op("Transpose", values, perm=[0, 2, 1])

    def scale(self, values: ir.Value, factors: tuple[float, ...]) -> ir.Value:
        return self._builder.op("Mul", values, self._builder.constant(np.array(factors, dtype=np.float32)))

    def copy(self, values: ir.Value) -> ir.Value:
        """The same values under a name of their own."""
        return self._builder.op("Identity", values)


def activation_of(values: NDArray[Any]) -> ObjectnessActivation:
    """None for what came through a sigmoid already, else the sigmoid."""
    return "none" if is_probability(values) else "sigmoid"


def decoded_boxes(num_classes: int, *, activation: ObjectnessActivation, with_objectness: bool) -> Boxes:
    """Boxes as centre and size in pixels, one label a box, as the YOLO line decodes them in its graphs."""
    return Boxes(
        num_classes=num_classes,
        box_format="cxcywh",
        score_activation=activation,
        objectness_activation=activation,
        score_combination="multiply" if with_objectness else "none",
        nms=NmsSpec(),
    )


def take_columns(name: str, num_classes: int, *, with_objectness: bool, swapped: bool = False) -> TakeApart:
    """How one output of boxes, objectness and classes side by side is taken apart."""

    def take_apart(operations: Operations[Any], outputs: dict[str, Any]) -> dict[str, Any]:
        rows = operations.swap(outputs[name]) if swapped else outputs[name]
        first = 5 if with_objectness else 4
        heads = {
            "box_regression": operations.columns(rows, 0, 4),
            "class_logits": operations.columns(rows, first, first + num_classes),
        }
        if with_objectness:
            heads["objectness"] = operations.column(rows, 4)
        return heads

    return take_apart
