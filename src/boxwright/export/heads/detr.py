"""DETR and RT-DETR: `logits` (B, Q, C + 1), "no object" last, or (B, Q, C), and `pred_boxes` (B, Q, 4) from 0 to 1."""

from __future__ import annotations

from typing import Any

from boxwright.core.decode_nms_attributes import ScoreActivation
from boxwright.core.decode_spec import Queries
from boxwright.export.foreign import ForeignFile, is_probability
from boxwright.export.heads.operations import Operations, Reading
from boxwright.export.heads.ssd import pair_of_outputs

EXPECTS = "two outputs, logits (B, Q, C + 1) or (B, Q, C) and pred_boxes (B, Q, 4)"


def read(foreign: ForeignFile) -> Reading:
    """Softmax and one label where there is one more class than labels (DETR), else a sigmoid each (RT-DETR)."""
    classes, boxes = pair_of_outputs(foreign, EXPECTS)
    logits = foreign.outputs[classes]
    num_surplus = logits.shape[2] - foreign.num_classes
    if num_surplus not in (0, 1):
        raise foreign.wrong_class_count(logits.shape[2] - 1)
    activation: ScoreActivation = "softmax" if num_surplus else "sigmoid"
    num_queries = int(logits.shape[1])

    def take_apart(operations: Operations[Any], outputs: dict[str, Any]) -> dict[str, Any]:
        return {"box_regression": outputs[boxes], "class_logits": outputs[classes]}

    decode = Queries(
        num_classes=foreign.num_classes,
        num_queries=num_queries,
        score_activation="none" if is_probability(logits) else activation,
        background_class=foreign.num_classes if num_surplus else -1,
        multi_label=not num_surplus,
        scale_wh=(float(foreign.size_hw[1]), float(foreign.size_hw[0])),
        max_detections=min(num_queries * (1 if num_surplus else foreign.num_classes), 300),
    )
    return Reading(decode=decode, take_apart=take_apart)
