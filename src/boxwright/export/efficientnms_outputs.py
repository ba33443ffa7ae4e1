"""The names that EfficientNMS's users know, for the outputs of a graph that gives detections.

num_detections, boxes, scores, class_ids   ->   num_dets, det_boxes, det_scores, det_classes

Their meaning is the same but for what fills them up: here the class of no detection is -1.
"""

from __future__ import annotations

import onnx_ir as ir

from boxwright.export.decode_nms.function import OUTPUT_NAMES
from boxwright.export.graph_builder import free_names
from boxwright.runtimes.model_fit import EFFICIENTNMS_OUTPUTS


def rename_outputs(model: ir.Model) -> bool:
    """Give the outputs of a graph EfficientNMS's names.

    Args:
        model: changed.

    Returns:
        False where it gives no detections, or has these names already.
    """
    outputs = {output.name: output for output in model.graph.outputs}
    if not set(OUTPUT_NAMES) <= outputs.keys():
        return False
    free_names(model.graph, EFFICIENTNMS_OUTPUTS)
    for old, new in zip(OUTPUT_NAMES, EFFICIENTNMS_OUTPUTS, strict=True):
        outputs[old].name = new
    return True
