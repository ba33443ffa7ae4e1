"""Step 5 of DecodeNMS in ONNX: the survivors in rank order, and padding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from boxwright.export.decode_nms.builder import DecodeNmsBuilder
from boxwright.export.decode_nms.selection import Candidates


class Outputs(NamedTuple):
    """The outputs of DecodeNMS; K is `max_detections`."""

    num_detections: ir.Value  # (B, 1) int32
    boxes: ir.Value  # (B, K, 4)
    scores: ir.Value  # (B, K)
    class_ids: ir.Value  # (B, K) int32


def collect(
    builder: DecodeNmsBuilder, candidates: Candidates, boxes_xyxy: ir.Value, keys: ir.Value, *, keys_tie: bool
) -> Outputs:
    """The candidates with the greatest positive keys, in that order.

    One more candidate, the padding, is put behind the others, and every place that is not filled points to it.

    Args:
        keys: (B, M) float32, positive for survivors.
        keys_tie: whether keys can be equal; ties are settled by place.
    """
    top = builder.attributes.max_detections
    batch = builder.dimension(keys, 0)

    def pad(values: ir.Value, rest: list[int], fill: float) -> ir.Value:
        shape = builder.op("Concat", batch, rest, axis=0)
        padding = builder.op("ConstantOfShape", shape, value=ir.tensor(np.full(1, fill, np.float32)))
        return builder.op("Concat", values, padding, axis=1)

    # At least `top` keys, however few the candidates are.
    best_keys, places = builder.top_k(pad(keys, [top], -1.0), [top])
    if keys_tie:
        places = builder.gather_columns(places, builder.order_of_ranks(best_keys, builder.as_key(places)))
    filled = builder.op("Greater", best_keys, 0.0)  # (B, K)
    places = builder.op("Where", filled, places, builder.dimension(keys, 1))
    num_filled = builder.op("ReduceSum", builder.to_float(filled), [1], keepdims=1)
    class_ids = builder.gather_columns(pad(_class_ids(builder, candidates), [1], -1.0), places)
    return Outputs(
        builder.op("Cast", num_filled, to=ir.DataType.INT32),
        builder.gather_rows(pad(boxes_xyxy, [1, 4], 0.0), places),
        builder.gather_columns(pad(candidates.scores, [1], 0.0), places),
        builder.op("Cast", class_ids, to=ir.DataType.INT32),
    )


def _class_ids(builder: DecodeNmsBuilder, candidates: Candidates) -> ir.Value:
    """Class indices without the background, as floats."""
    background = builder.attributes.background_class
    if background < 0:
        return candidates.classes
    is_behind = builder.op("Greater", candidates.classes, float(background))
    return builder.op("Sub", candidates.classes, builder.to_float(is_behind))
