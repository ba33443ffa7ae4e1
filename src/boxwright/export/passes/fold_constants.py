"""Computes now what does not depend on the image.

    f(constant, constant, ...)  ->  constant
    Identity(x)                 ->  x
    BatchNormalization(Conv(x)) ->  Conv(x), its weights scaled

and removes what nothing reads. Folding is bounded, so that no file grows by unrolling a large `Expand`.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import optimizer

from boxwright.export.passes import split_sizes

ORDER = 10
_LARGEST_RESULT_BYTES = 1 << 20


def run(model: ir.Model) -> bool:
    """Simplify with onnxscript's optimizer; names of inputs and outputs stay."""
    before = _census(model)
    optimizer.optimize_ir(model, output_size_limit=_LARGEST_RESULT_BYTES)
    _register_constants(model.graph)
    # The optimizer makes one Split of two Slices, in the words of opset 18 and behind nodes that read it.
    split_sizes.run(model)
    model.graph.sort()
    return _census(model) != before


def _census(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def _register_constants(graph: ir.Graph) -> None:
    """Make initializers of constants that onnxscript 0.7 has left outside the graph (two Flatten of one value)."""
    known = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value.producer() is None and value.const_value is not None and value not in known:
                known.add(value)
                graph.register_initializer(value)
