"""Step 2 of DecodeNMS in ONNX: the best candidates of the image, of each level or of each class."""

from __future__ import annotations

import math
from typing import NamedTuple

import onnx_ir as ir

from boxwright.export.decode_nms.builder import DecodeNmsBuilder
from boxwright.export.decode_nms.scores import comparable_values, final_scores


class Candidates(NamedTuple):
    """Pairs of anchor and class; M of them an image, of which those at or below the threshold are still to go."""

    anchors: ir.Value  # (B, M) int64
    classes: ir.Value  # (B, M) whole numbers in float32, the background counted
    scores: ir.Value  # (B, M)


class _Head(NamedTuple):
    """Part of the anchors, or all."""

    values: ir.Value  # (B, N, C), ordering the classes of an anchor
    objectness: ir.Value | None  # (B, N)
    best_values: ir.Value  # (B, N), of the best class
    best_scores: ir.Value  # (B, N)


def select_candidates(builder: DecodeNmsBuilder, class_logits: ir.Value, objectness: ir.Value | None) -> Candidates:
    """The candidates that survive the top-k before NMS.

    They come in rank order (score descending, class, anchor), but for the scope `class`, where they come class by
    class, each in rank order.
    """
    values = comparable_values(builder, class_logits, objectness)
    if builder.attributes.top_k_scope == "class":
        return _best_of_each_class(builder, values, objectness)
    best_values = builder.reduce("ReduceMax", values)
    head = _Head(values, objectness, best_values, final_scores(builder, best_values, objectness))
    if builder.attributes.top_k_scope == "image":
        return _best_of_part(builder, head)
    ranges = _level_ranges(builder.attributes.level_sizes)
    parts = [_best_of_level(builder, head, start, stop) for start, stop in ranges]
    joined = Candidates(*(builder.op("Concat", *columns, axis=1) for columns in zip(*parts, strict=True)))
    return in_rank_order(builder, joined, _pair_index(builder, joined, values))


def in_rank_order(
    builder: DecodeNmsBuilder, candidates: Candidates, tie_breakers: ir.Value | None = None
) -> Candidates:
    """The candidates sorted by score descending, ties by the tie breakers, or else by their places."""
    count = builder.dimension(candidates.scores, 1)
    scores, order = builder.top_k(candidates.scores, count)
    ties = builder.as_key(order) if tie_breakers is None else builder.gather_columns(tie_breakers, order)
    order = builder.gather_columns(order, builder.order_of_ranks(scores, ties))
    anchors = builder.gather_columns(candidates.anchors, order)
    return Candidates(anchors, builder.gather_columns(candidates.classes, order), scores)


def _pair_index(builder: DecodeNmsBuilder, candidates: Candidates, values: ir.Value) -> ir.Value:
    """Class * N + anchor, of the key type: the order that settles ties."""
    num_anchors = builder.as_key(builder.dimension(values, 1))
    of_class = builder.op("Mul", builder.as_key(candidates.classes), num_anchors)
    return builder.op("Add", of_class, builder.as_key(candidates.anchors))


def _best_of_part(builder: DecodeNmsBuilder, head: _Head) -> Candidates:
    """The first `pre_nms_top_k` candidates of these anchors, in rank order."""
    num_kept = _at_most(builder, builder.dimension(head.values, 1), builder.attributes.pre_nms_top_k)
    scores, anchors = builder.top_k(head.best_scores, num_kept)
    if builder.attributes.multi_label:
        return _best_pairs(builder, head, anchors, num_kept)
    best_values = builder.op("Unsqueeze", builder.gather_columns(head.best_values, anchors), [2])  # (B, K, 1)
    classes = _first_equal(builder, builder.gather_rows(head.values, anchors), best_values)
    candidates = Candidates(anchors, classes, scores)
    order = builder.order_of_ranks(scores, _pair_index(builder, candidates, head.values))
    return Candidates(builder.gather_columns(anchors, order), builder.gather_columns(classes, order), scores)


def _best_pairs(builder: DecodeNmsBuilder, head: _Head, anchors: ir.Value, num_kept: ir.Value) -> Candidates:
    """The first `pre_nms_top_k` pairs, which lie in the anchors (B, K) with the best scores."""
    _, ascending = builder.top_k(builder.as_key(anchors), num_kept, largest=False)
    anchors = builder.gather_columns(anchors, ascending)
    objectness = None
    if head.objectness is not None:
        objectness = builder.op("Unsqueeze", builder.gather_columns(head.objectness, anchors), [2])  # (B, K, 1)
    pairs = final_scores(builder, builder.gather_rows(head.values, anchors), objectness)  # (B, K, C)
    # Class by class, anchors ascending, a pair's place settles ties.
    flat = builder.op("Flatten", builder.op("Transpose", pairs, perm=[0, 2, 1]), axis=1)  # (B, C * K)
    num_pairs = _at_most(builder, builder.dimension(flat, 1), builder.attributes.pre_nms_top_k)
    scores, places = builder.top_k(flat, num_pairs)
    places = builder.gather_columns(places, builder.order_of_ranks(scores, builder.as_key(places)))
    divisor = builder.op("Max", num_kept, [1])  # no anchors, no places: but engines divide before they see that
    classes = builder.op("Div", places, divisor)
    rows = builder.op("Sub", places, builder.op("Mul", classes, divisor))
    return Candidates(builder.gather_columns(anchors, rows), builder.to_float(classes), scores)


def _first_equal(builder: DecodeNmsBuilder, values: ir.Value, wanted: ir.Value) -> ir.Value:
    """Index (B, K) along the last axis of (B, K, C) of the first value that equals the wanted one (B, K, 1).

    An ArgMax whose maximum is known; elementwise, which OpenVINO does several times faster.
    """
    num_classes = builder.dimension(values, 2)
    index = builder.op(
        "Where", builder.op("Equal", values, wanted), builder.class_indices(num_classes), builder.to_float(num_classes)
    )
    return builder.reduce("ReduceMin", index)


def _best_of_level(builder: DecodeNmsBuilder, head: _Head, start: int, stop: int) -> Candidates:
    """The best candidates of one pyramid level, with anchors counted over all levels."""

    def part(values: ir.Value) -> ir.Value:
        return builder.columns(values, start, stop, axis=1)

    objectness = None if head.objectness is None else part(head.objectness)
    level = _Head(part(head.values), objectness, part(head.best_values), part(head.best_scores))
    candidates = _best_of_part(builder, level)
    return candidates._replace(anchors=builder.op("Add", candidates.anchors, start))


def _best_of_each_class(builder: DecodeNmsBuilder, values: ir.Value, objectness: ir.Value | None) -> Candidates:
    """The first `pre_nms_top_k` anchors of every class, class by class, each in rank order."""
    class_indices = builder.class_indices(builder.dimension(values, 2))
    column = None if objectness is None else builder.op("Unsqueeze", objectness, [2])
    scores = final_scores(builder, values, column)  # (B, N, C)
    if not builder.attributes.multi_label:
        best = _first_equal(builder, values, builder.reduce("ReduceMax", values, keep_axis=True))
        is_best = builder.op("Equal", builder.op("Unsqueeze", best, [2]), class_indices)
        scores = builder.op("Where", is_best, scores, -math.inf)
    by_class = builder.op("Transpose", scores, perm=[0, 2, 1])  # (B, C, N)
    num_kept = _at_most(builder, builder.dimension(values, 1), builder.attributes.pre_nms_top_k)
    top_scores, anchors = builder.top_k(by_class, num_kept)  # (B, C, K)
    classes = builder.op("Expand", builder.op("Unsqueeze", class_indices, [1]), builder.shape(anchors))
    row_scores, row_anchors = (builder.op("Flatten", part, axis=2) for part in (top_scores, anchors))  # (B * C, K)
    order = builder.order_of_ranks(row_scores, builder.as_key(row_anchors))
    anchors = builder.reshape(builder.gather_columns(row_anchors, order), builder.shape(anchors))
    return Candidates(*(builder.op("Flatten", part, axis=1) for part in (anchors, classes, top_scores)))


def _at_most(builder: DecodeNmsBuilder, count: ir.Value, limit: int) -> ir.Value:
    """The count, a one-element vector, bounded by the limit; 0 is no limit."""
    return count if limit == 0 else builder.op("Min", count, [limit])


def _level_ranges(level_sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """First anchor, and one past the last, of each level that has any."""
    ranges, start = [], 0
    for size in level_sizes:
        if size > 0 or sum(level_sizes) == 0:
            ranges.append((start, start + size))
        start += size
    return ranges
