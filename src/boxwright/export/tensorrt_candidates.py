"""How many candidates may go to NMS where TensorRT's own layers sort them: it sorts a few thousand at once."""

from __future__ import annotations

from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.decode_spec import DecodeSpec
from boxwright.export.decode_nms.function import sorts_in_float
from boxwright.export.tensorrt_limits import ParserLimits


def candidates_that_fit(decode: DecodeSpec, limits: ParserLimits) -> int | None:
    """The number for `--max-candidates` that TensorRT can sort, nearest to the family's own.

    Args:
        decode: of a detector.
        limits: of TensorRT's ONNX parser.

    Returns:
        None where the family's own number fits, and where nothing is known of how many anchors there are.
    """
    attributes = decode.attributes()
    priors = decode.priors()
    num_anchors = sum(attributes.level_sizes) or (0 if priors is None else len(priors))
    if not attributes.with_nms or num_anchors == 0:
        return None
    groups = _groups(attributes, num_anchors, decode.num_logits)
    limit = attributes.pre_nms_top_k
    num_sorted = sum(min(size, limit) if limit else size for size in groups)
    counts_exactly = limits.sorts_integers or sorts_in_float(attributes, num_anchors, decode.num_logits)
    return None if num_sorted <= limits.largest_k and counts_exactly else limits.largest_k // len(groups)


def what_is_said(decode: DecodeSpec, fitting: int, limits: ParserLimits, *, has_plugin: bool) -> str:
    """One line for people about a number from `candidates_that_fit`.

    Args:
        decode: of the detector.
        fitting: the number.
        limits: of TensorRT's ONNX parser.
        has_plugin: whether the export could keep the operator as a node instead.
    """
    attributes = decode.attributes()
    line = (
        f"--max-candidates {fitting}: of each {attributes.top_k_scope} so many go to NMS and not "
        f"{attributes.pre_nms_top_k or 'all'}, since TensorRT sorts at most {limits.largest_k} together"
    )
    return f"{line}; --nms plugin keeps them" if has_plugin else line


def _groups(attributes: DecodeNmsAttributes, num_anchors: int, num_logits: int) -> tuple[int, ...]:
    """Sizes of the groups that candidates are chosen from and whose best are then sorted together."""
    labels = num_logits if attributes.multi_label else 1
    if attributes.top_k_scope == "level":
        return tuple(size * labels for size in attributes.level_sizes if size)
    if attributes.top_k_scope == "image":
        return (num_anchors * labels,)
    is_joined = attributes.class_agnostic or attributes.overlap == "diou"
    return (num_anchors,) * (num_logits if is_joined else 1)
