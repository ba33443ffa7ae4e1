"""DecodeNMS as a torch operator, for detectors that need detections inside themselves, as two-stage ones do.

Eager torch runs the kernels of `boxwright.core`. While torch exports to ONNX the call becomes one node in the domain
`TRACED_DOMAIN`, which `boxwright.export` replaces by the operator that every other part of the project knows.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from boxwright.core import kernels
from boxwright.core.decode_nms_attributes import TRACED_DOMAIN, TRACED_INPUTS, DecodeNmsAttributes

_SCHEMA = (
    "(Tensor box_regression, Tensor class_logits, Tensor? priors, Tensor? image_size_hw, float score_threshold, "
    "float iou_threshold, str attributes_json) -> (Tensor, Tensor, Tensor, Tensor)"
)
_Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


class DecodedDetections(NamedTuple):
    """What DecodeNMS gives; K is `max_detections`."""

    num_detections: Tensor  # (B, 1) int32
    boxes_xyxy: Tensor  # (B, K, 4), 0 in the padding
    scores: Tensor  # (B, K), 0 in the padding
    class_ids: Tensor  # (B, K) int32, -1 in the padding


@torch.no_grad()
def decode_nms(
    box_regression: Tensor,
    class_logits: Tensor,
    *,
    attributes: DecodeNmsAttributes,
    score_threshold: float,
    iou_threshold: float,
    priors: Tensor | None = None,
    image_size_hw: Tensor | None = None,
) -> DecodedDetections:
    """Detections of a batch, without gradients; see `boxwright.core.decode.decode_nms` for the exact meaning.

    Args:
        box_regression: (B, N, 4), or (B, N, C*4) with class-specific boxes.
        class_logits: (B, N, C).
        attributes: of the operator, without an objectness.
        score_threshold: in [0, 1].
        iou_threshold: in [0, 1].
        priors: (N, 4) or (B, N, 4).
        image_size_hw: (B, 2), for `clip_to_image`.
    """
    assert attributes.score_combination == "none"
    attributes_json = attributes.to_json()
    if torch.onnx.is_in_onnx_export():
        given = {
            "box_regression": box_regression,
            "class_logits": class_logits,
            "priors": priors,
            "image_size_hw": image_size_hw,
        }
        return _traced(
            tuple(given[name] for name in TRACED_INPUTS),
            {"attributes": attributes_json, "score_threshold": score_threshold, "iou_threshold": iou_threshold},
            attributes.max_detections,
        )
    outputs = torch.ops.boxwright.decode_nms(
        box_regression, class_logits, priors, image_size_hw, score_threshold, iou_threshold, attributes_json
    )
    return DecodedDetections(*outputs)


def _traced(inputs: tuple[Tensor | None, ...], attributes: dict[str, Any], max_detections: int) -> DecodedDetections:
    """The call as a node of the graph that is being exported."""
    class_logits = inputs[1]
    assert class_logits is not None
    batch = class_logits.shape[0]
    integers, floats = torch.int32, torch.float32
    outputs = torch.onnx.ops.symbolic_multi_out(
        f"{TRACED_DOMAIN}::DecodeNMS",
        inputs,
        attributes,
        dtypes=(integers, floats, floats, integers),
        shapes=([batch, 1], [batch, max_detections, 4], [batch, max_detections], [batch, max_detections]),
        version=1,
    )
    return DecodedDetections(*outputs)


@torch.library.custom_op("boxwright::decode_nms", mutates_args=(), schema=_SCHEMA)
def _decode_nms(
    box_regression: Tensor,
    class_logits: Tensor,
    priors: Tensor | None,
    image_size_hw: Tensor | None,
    score_threshold: float,
    iou_threshold: float,
    attributes_json: str,
) -> _Outputs:
    """The kernel of `boxwright.core`; tensors of another device go through the CPU."""
    output = kernels.decode_nms(
        _array(box_regression),
        _array(class_logits),
        attributes=_attributes(attributes_json),
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        priors=None if priors is None else _array(priors),
        image_size_hw=None if image_size_hw is None else _array(image_size_hw),
    )
    device = class_logits.device
    counts, boxes, scores, class_ids = (torch.from_numpy(part).to(device) for part in output)
    return counts, boxes, scores, class_ids


@_decode_nms.register_fake
def _(
    box_regression: Tensor,
    class_logits: Tensor,
    priors: Tensor | None,
    image_size_hw: Tensor | None,
    score_threshold: float,
    iou_threshold: float,
    attributes_json: str,
) -> _Outputs:
    batch, top = class_logits.shape[0], _attributes(attributes_json).max_detections
    return (
        class_logits.new_empty((batch, 1), dtype=torch.int32),
        class_logits.new_empty((batch, top, 4), dtype=torch.float32),
        class_logits.new_empty((batch, top), dtype=torch.float32),
        class_logits.new_empty((batch, top), dtype=torch.int32),
    )


@functools.lru_cache(maxsize=64)
def _attributes(attributes_json: str) -> DecodeNmsAttributes:
    return DecodeNmsAttributes.from_json(attributes_json)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().to("cpu", torch.float32).numpy()
    return array
