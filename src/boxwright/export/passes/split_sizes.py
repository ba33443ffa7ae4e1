"""Gives Split the sizes of its parts where the opset has no other way to say them.

    Split(x, num_outputs=n)  ->  Split(x, [c, c, ..., rest]),  c = ceil(size / n)

`num_outputs` came with opset 18. Torch's exporter writes opset 18 and lowers the version of the file, but leaves the
attribute, which ONNX Runtime then refuses.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

ORDER = 5
_FIRST_OPSET_WITH_NUM_OUTPUTS = 18


def run(model: ir.Model) -> bool:
    """Replace the attribute; a part of an axis of unknown size cannot be named and is left as it is."""
    if model.opset_imports.get("", _FIRST_OPSET_WITH_NUM_OUTPUTS) >= _FIRST_OPSET_WITH_NUM_OUTPUTS:
        return False
    changed = False
    for node in model.graph:
        if node.op_type != "Split" or "num_outputs" not in node.attributes:
            continue
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        whole = node.inputs[0]
        size = whole.shape[axis] if whole is not None and whole.shape is not None else None
        if not isinstance(size, int):
            continue
        sizes = _part_sizes(size, node.attributes["num_outputs"].as_int())
        name = f"{node.outputs[0].name}_sizes"
        value = ir.Value(name=name, const_value=ir.tensor(np.array(sizes, dtype=np.int64), name=name))
        model.graph.register_initializer(value)
        node.resize_inputs(2)
        node.replace_input_with(1, value)
        del node.attributes["num_outputs"]
        changed = True
    return changed


def _part_sizes(size: int, count: int) -> list[int]:
    """Equal parts, the last one smaller where the size is no multiple."""
    part = -(-size // count)
    return [min(part, size - part * index) for index in range(count)]
