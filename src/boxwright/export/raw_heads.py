"""Cutting an exported graph where its raw heads are, so that what is behind them can be made anew."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from boxwright.core.decode_spec import RAW_HEAD_NAMES
from boxwright.core.manifest import Manifest, Stage
from boxwright.export.decode_nms.function import DOMAIN, OP_TYPE, THRESHOLD_NAMES


def ends_in_decode_nms_node(model: ir.Model) -> bool:
    """Whether the detections come from the operator as a node (`--nms plugin`)."""
    producers = (output.producer() for output in model.graph.outputs)
    return any(node is not None and (node.domain, node.op_type) == (DOMAIN, OP_TYPE) for node in producers)


def cut_at_raw_heads(model: ir.Model, manifest: Manifest) -> tuple[ir.Model, Manifest] | None:
    """The part of an exported model from its input to its raw heads; every export keeps their names.

    Args:
        model: left as it is.
        manifest: of it.

    Returns:
        The part and its manifest, or None where the graph does not have the heads, or takes pixels and brings the
        boxes back to them.
    """
    stage: Stage = "boxes" if manifest.decode.kind == "boxes" else "raw"
    part = ir.from_proto(ir.to_proto(model))
    if manifest.stage != "detections":
        return part, replace(manifest, verification=None)
    graph = part.graph
    values = {str(value.name): value for node in graph for value in node.outputs}
    heads = [values[name] for name in RAW_HEAD_NAMES if name in values]
    needed = {"box_regression", "class_logits", *(("objectness",) if manifest.decode.has_objectness else ())}
    if manifest.input_kind == "pixels" or not needed <= {str(value.name) for value in heads}:
        return None
    graph.outputs.clear()
    graph.outputs.extend(heads)
    for name in THRESHOLD_NAMES:
        graph.initializers.pop(name, None)
    for value in [value for value in graph.inputs if value.name in THRESHOLD_NAMES]:
        graph.inputs.remove(value)
    RemoveUnusedNodesPass()(part)
    RemoveUnusedFunctionsPass()(part)  # type: ignore[no-untyped-call]
    if all(node.domain != DOMAIN for node in graph):  # proposals may be a node of their own
        graph.opset_imports.pop(DOMAIN, None)
    return part, replace(manifest, stage=stage, verification=None)
