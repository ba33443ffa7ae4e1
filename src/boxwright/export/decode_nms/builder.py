"""What all steps of DecodeNMS in ONNX share."""

from __future__ import annotations

import math

import onnx_ir as ir

from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.export.graph_builder import GraphBuilder

# Integers up to this are exact in float32.
EXACT_IN_FLOAT = 2**24
# OpenVINO computes int64 as int32.
_EXACT_IN_INT32 = 2**31
_REDUCE_TAKES_AXES_AS_INPUT = 18


class DecodeNmsBuilder(GraphBuilder):
    """A builder that knows the attributes of the operator.

    Attributes:
        attributes: of the operator.
        opset: that the body is written for, 17 or newer.
        key_type: of integers that are sorted. TensorRT 8.5 sorts floats alone, but int64 is exact for any size.
        most_sorted: a bound on how many candidates are sorted at once; None where it is not known.
    """

    def __init__(
        self,
        attributes: DecodeNmsAttributes,
        *,
        key_type: ir.DataType,
        opset: int,
        most_sorted: int | None = None,
        prefix: str = "decode_nms",
    ) -> None:
        super().__init__(prefix)
        self.attributes = attributes
        self.key_type = key_type
        self.opset = opset
        self.most_sorted = most_sorted
        self._shapes: dict[ir.Value, ir.Value] = {}

    def dimension(self, values: ir.Value, axis: int) -> ir.Value:
        """Size along a non-negative axis, a one-element int64 vector."""
        return self.dimensions(values, axis, axis + 1)

    def dimensions(self, values: ir.Value, start: int, stop: int) -> ir.Value:
        """Sizes along the axes from start until stop, an int64 vector.

        Shape could cut these out by itself (opset 15), but TensorRT 8.5 ignores it when it should.
        """
        return self.op("Slice", self.shape(values), [start], [stop], [0])

    def shape(self, values: ir.Value) -> ir.Value:
        """All sizes, an int64 vector."""
        if values not in self._shapes:
            self._shapes[values] = self.op("Shape", values)
        return self._shapes[values]

    def reshape(self, values: ir.Value, *sizes: ir.Value | list[int]) -> ir.Value:
        """Another shape of the same numbers, 0 meaning 0."""
        return self.op("Reshape", values, self.op("Concat", *sizes, axis=0), allowzero=1)

    def scalar(self, vector: ir.Value) -> ir.Value:
        """The number in a one-element vector."""
        return self.op("Squeeze", vector, [0])

    def reduce(self, op_type: str, values: ir.Value, *, keep_axis: bool = False) -> ir.Value:
        """ReduceMax or ReduceMin of (A, B, C) along the last axis."""
        if self.opset < _REDUCE_TAKES_AXES_AS_INPUT:
            return self.op(op_type, values, axes=[2], keepdims=int(keep_axis))
        return self.op(op_type, values, [2], keepdims=int(keep_axis))

    def to_float(self, values: ir.Value) -> ir.Value:
        return self.op("Cast", values, to=ir.DataType.FLOAT)

    def as_key(self, values: ir.Value) -> ir.Value:
        """Integers in the type in which they are sorted."""
        return self.op("Cast", values, to=self.key_type)

    def class_indices(self, num_classes: ir.Value) -> ir.Value:
        """0, 1, ... C - 1 as floats (C,), of C as a one-element vector."""
        return self.to_float(self.op("Range", 0, self.scalar(num_classes), 1))

    def columns(self, values: ir.Value, start: int, stop: int, *, axis: int = 2) -> ir.Value:
        """`values[..., start:stop]` along the axis."""
        return self.op("Slice", values, [start], [stop], [axis])

    def gather_columns(self, values: ir.Value, indices: ir.Value) -> ir.Value:
        """`values[b, indices[b, m]]`, (B, M) of (B, N)."""
        return self.op("GatherElements", values, indices, axis=1)

    def gather_rows(self, values: ir.Value, indices: ir.Value) -> ir.Value:
        """`values[b, indices[b, m], :]`, (B, M, D) of (B, N, D)."""
        return self.op("GatherND", values, self.op("Unsqueeze", indices, [2]), batch_dims=1)

    def order_of_ranks(self, sorted_scores: ir.Value, tie_breakers: ir.Value) -> ir.Value:
        """The order (B, M) in which equal scores stand in ascending order of their tie breakers.

        ONNX says that TopK settles ties by index, but not every engine does. So sorting is done by keys that are never
        equal: the number of the group of equal scores (or a digit of it) first, the rank of the tie breaker second.

        Args:
            sorted_scores: (B, M) descending, ties in any order.
            tie_breakers: (B, M) of the key type, all different.
        """
        count = self.dimension(sorted_scores, 1)
        before = self.op(
            "Concat", self.columns(sorted_scores, 0, 1, axis=1), self.columns(sorted_scores, 0, -1, axis=1), axis=1
        )
        starts_group = self.to_float(self.op("Less", sorted_scores, before))
        group = self.op("CumSum", starts_group, 1)  # (B, M)
        _, order = self.top_k(tie_breakers, count, largest=False)
        rank = self.as_key(self.op("Range", 0, self.scalar(count), 1))  # (M,)
        for digit in self._digits(group):
            of_rank = self.as_key(self.gather_columns(digit, order))
            keys = self.op("Add", self.op("Mul", of_rank, self.as_key(count)), rank)
            _, by_key = self.top_k(keys, count, largest=False)
            order = self.gather_columns(order, by_key)
        return order

    def _digits(self, group: ir.Value) -> list[ir.Value]:
        """The numbers of groups (B, M) in digits, the lowest first, so small that no key exceeds 32 bits.

        Sorting by each digit in turn, ties left in their order, sorts by the numbers.
        """
        if self.most_sorted is None or self.most_sorted**2 <= _EXACT_IN_INT32:
            return [group]
        num_bits = int(math.log2(_EXACT_IN_INT32 // self.most_sorted))  # of a digit: powers of two divide exactly
        digits, rest = [], group
        for _ in range(math.ceil(math.log2(self.most_sorted) / num_bits) - 1):
            higher = self.op("Cast", self.op("Mul", rest, 2.0**-num_bits), to=ir.DataType.INT64)
            higher = self.to_float(higher)
            digits.append(self.op("Sub", rest, self.op("Mul", higher, 2.0**num_bits)))
            rest = higher
        return [*digits, rest]
