"""Writes out the DecodeNMS inside a network (the proposals of two-stage detectors) in standard operators.

    boxwright.traced::DecodeNMS(...)  ->  the body that `boxwright.export.decode_nms` generates for its attributes

Only the last DecodeNMS of a model is left to a plugin or to the host. Comes first, so that constants are folded in the
body too.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from boxwright.core.decode_nms_attributes import TRACED_DOMAIN, TRACED_INPUTS, DecodeNmsAttributes
from boxwright.export.decode_nms.function import DOMAIN, THRESHOLD_NAMES, call_decode_nms

ORDER = 5


def run(model: ir.Model) -> bool:
    """Expand every such node."""
    nodes = [node for node in model.graph if node.domain == TRACED_DOMAIN]
    for number, node in enumerate(nodes):
        _replace(model, node, f"inner_decode_nms_{number}")
    if nodes:
        InlinePass()(model)
        model.graph.opset_imports.pop(TRACED_DOMAIN, None)
        model.graph.opset_imports.pop(DOMAIN, None)
    return bool(nodes)


def _replace(model: ir.Model, traced: ir.Node, name: str) -> None:
    """Put the call of a local function in the place of a traced node."""
    graph = model.graph
    attributes = DecodeNmsAttributes.from_json(traced.attributes["attributes"].as_string())
    operands = {input_name: value for input_name, value in zip(TRACED_INPUTS, traced.inputs, strict=False) if value}
    for threshold in THRESHOLD_NAMES:
        operands[threshold] = _constant(graph, f"{name}/{threshold}", traced.attributes[threshold].as_float())
    # A function of its own for each node: how it sorts depends on the number of anchors.
    node = call_decode_nms(model, operands, attributes, name=name, suffix=f"_{name}")
    ir.convenience.replace_nodes_and_values(graph, traced, [traced], [node], traced.outputs, node.outputs)


def _constant(graph: ir.Graph, name: str, number: float) -> ir.Value:
    value = ir.val(name, ir.DataType.FLOAT, [], const_value=ir.tensor(np.array(number, dtype=np.float32), name=name))
    graph.register_initializer(value)
    return value
