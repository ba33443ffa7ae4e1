"""Computes the sizes that are known although the batch is open, so that what follows from them becomes a constant.

    Slice(Shape(x), [1], [2]) of x (B, 8400, 4)  ->  [8400]

The k of each TopK follows from the number of anchors: TensorRT 8.5 wants it as an initializer, and all versions say no
earlier than at run time that it is too large, unless it is one.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from boxwright.export.passes import fold_constants

# Each turn makes sizes known that follow from those of the turn before: candidates, kept ones, outputs.
_MOST_TURNS = 6


def fold_known_sizes(model: ir.Model) -> ir.Model:
    """A copy in which known sizes are constants, and what is computed from them alone too."""
    copy = _with_shapes(model)
    for _ in range(_MOST_TURNS):
        if not sum(_replace_size(copy.graph, node) for node in list(copy.graph)):
            break
        fold_constants.run(copy)
        copy = _with_shapes(copy)
    return copy


def _with_shapes(model: ir.Model) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True))


def _replace_size(graph: ir.Graph, node: ir.Node) -> bool:
    """Make an initializer of a Slice or Gather of a Shape whose sizes are known."""
    if node.op_type not in ("Slice", "Gather") or not node.inputs or node.inputs[0] is None:
        return False
    shape_node = node.inputs[0].producer()
    if shape_node is None or shape_node.op_type != "Shape" or not node.outputs[0].uses():
        return False
    sizes = _sizes_of(shape_node)
    numbers = [ir.convenience.get_const_tensor(value) for value in node.inputs[1:] if value is not None]
    if sizes is None or any(number is None for number in numbers):
        return False
    arrays = [number.numpy() for number in numbers if number is not None]
    if node.op_type == "Gather":
        chosen = np.asarray(sizes, dtype=object)[arrays[0]]
    else:
        step = int(arrays[3].reshape(-1)[0]) if len(arrays) > 3 else 1
        chosen = np.asarray(sizes, dtype=object)[int(arrays[0].reshape(-1)[0]) : int(arrays[1].reshape(-1)[0]) : step]
    if not all(isinstance(size, int) for size in np.asarray(chosen, dtype=object).reshape(-1)):
        return False
    output = node.outputs[0]
    constant = ir.Value(name=f"{output.name}/known", const_value=ir.tensor(np.asarray(chosen, dtype=np.int64)))
    constant.shape, constant.type = ir.Shape(np.shape(chosen)), ir.TensorType(ir.DataType.INT64)
    graph.register_initializer(constant)
    ir.convenience.replace_all_uses_with(output, constant)
    graph.remove(node, safe=True)
    return True


def _sizes_of(shape_node: ir.Node) -> list[int | None] | None:
    """What a Shape gives; None for a size that is open."""
    value = shape_node.inputs[0]
    if value is None or value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else None for size in value.shape]
    start, end = shape_node.attributes.get_int("start", 0), shape_node.attributes.get_int("end", len(sizes))
    return sizes[start:end]
