"""SSD: `scores` (B, N, 1 + C), background first, and `boxes` (B, N, 4), corners from 0 to 1 or in pixels."""

from __future__ import annotations

from typing import Any

import numpy as np

from boxwright.core.decode_nms_attributes import ScoreActivation
from boxwright.core.decode_spec import Boxes, NmsSpec
from boxwright.export.foreign import ForeignFile, is_probability
from boxwright.export.heads.operations import Operations, Reading

EXPECTS = "two outputs, scores (B, N, 1 + C) and boxes (B, N, 4)"
# Corners may leave the image a little, but no relative one is this large.
_LARGEST_RELATIVE = 3.0


def pair_of_outputs(foreign: ForeignFile, expected: str) -> tuple[str, str]:
    """The names of the class output and of the box output."""
    outputs = {name: array for name, array in foreign.outputs.items() if array.ndim == 3}
    boxes = [name for name, array in outputs.items() if array.shape[2] == 4]
    if len(boxes) > 1:  # three classes and a background are four too: go by the names
        boxes = [name for name in boxes if "box" in name.lower()]
    classes = [name for name in outputs if name not in boxes]
    if len(boxes) != 1 or len(classes) != 1 or outputs[boxes[0]].shape[1] != outputs[classes[0]].shape[1]:
        raise foreign.complain(expected)
    return classes[0], boxes[0]


def read(foreign: ForeignFile) -> Reading:
    """Softmax with a background where there is one more class than labels, else a sigmoid for each class."""
    classes, boxes = pair_of_outputs(foreign, EXPECTS)
    scores = foreign.outputs[classes]
    num_surplus = scores.shape[2] - foreign.num_classes
    if num_surplus not in (0, 1):
        raise foreign.wrong_class_count(scores.shape[2] - 1)
    activation: ScoreActivation = "softmax" if num_surplus else "sigmoid"
    height, width = foreign.size_hw
    is_relative = np.abs(foreign.outputs[boxes]).max(initial=0) < _LARGEST_RELATIVE
    factors = (width, height, width, height) if is_relative else (1, 1, 1, 1)

    def take_apart(operations: Operations[Any], outputs: dict[str, Any]) -> dict[str, Any]:
        return {"box_regression": operations.scale(outputs[boxes], factors), "class_logits": outputs[classes]}

    decode = Boxes(
        num_classes=foreign.num_classes,
        score_activation="none" if is_probability(scores) else activation,
        background_class=0 if num_surplus else -1,
        multi_label=True,
        nms=NmsSpec(pre_nms_top_k=200, top_k_scope="class"),
    )
    return Reading(decode=decode, take_apart=take_apart)
