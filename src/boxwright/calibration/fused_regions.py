"""Which tensors must be quantized so that everything between two convolutions runs on integers.

An engine of the style `fused` makes an integer convolution only of a node whose input and output are quantized. What
lies between (SiLU's two nodes, sums, concatenations, pooling, upsampling) can run on integers too, where everything
that it reads does; it is worth it only where a quantized layer reads the result at the end.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

# What gives integers a scale of their own.
_COMPUTING = frozenset({"Add", "Mul", "Concat", "Sigmoid", "LeakyRelu", "AveragePool", "GlobalAveragePool"})
# What moves or picks integers: the result keeps the scale.
_SHARING = frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "Resize"})
# What the range of the integers does by itself, if they are quantized behind it.
_CLIPPING = frozenset({"Relu", "Clip"})
_COUNT_OF_ACTIVATIONS = {"Add": 2, "Mul": 2}


@dataclass(frozen=True, kw_only=True, eq=False)
class FusedRegions:
    """Tensors that a quantized layer, or an integer node after it, computes.

    Attributes:
        owners: by name of each tensor to be quantized, the tensor whose scale it has; mostly itself.
        sigmoids: those that lie between 0 and 1.
        before_silu: those that SiLU alone reads.
    """

    owners: dict[str, str]
    sigmoids: frozenset[str]
    before_silu: frozenset[str]


def find_regions(model: ir.Model, layers: Collection[str]) -> FusedRegions:
    """Find what must be quantized.

    Args:
        model: the graph.
        layers: names of the layers' nodes that become INT8.
    """
    owners: dict[str, str] = {}
    producers: dict[str, ir.Node] = {}
    for node in model.graph:
        owner = _owner_of_output(node, layers, owners)
        if owner is None:
            continue
        for value in node.outputs:
            clipped = _behind_clipping(value)
            name = clipped.name or ""
            owners[name] = name if owner == "" else owner
            producers[name] = node
    for name in reversed(list(owners)):
        value = _value_behind(producers[name], name)
        if producers[name].name not in layers and not _is_read_by_integers(value, layers, owners):
            del owners[name]
    kept = {name: _value_behind(producers[name], name) for name in owners}
    return FusedRegions(
        owners=owners,
        sigmoids=frozenset(name for name in owners if producers[name].op_type == "Sigmoid"),
        before_silu=frozenset(name for name, value in kept.items() if _is_before_silu(value)),
    )


def _owner_of_output(node: ir.Node, layers: Collection[str], owners: dict[str, str]) -> str | None:
    """The tensor whose scale the results share, "" for a scale of their own, None where they are float."""
    if node.name in layers:
        return "" if node.op_type == "Conv" else None  # products read integers and give floats
    if node.domain not in ("", "ai.onnx") or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type in _SHARING and _keeps_values(node):
        return owners.get(node.inputs[0].name or "")
    if node.op_type not in _COMPUTING:
        return None
    names = [value.name if value is not None else None for value in node.inputs]
    if len(names) < _COUNT_OF_ACTIVATIONS.get(node.op_type, 1) or any(name not in owners for name in names):
        return None
    return ""


def _keeps_values(node: ir.Node) -> bool:
    """Whether the results are among the numbers that go in."""
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    return node.op_type != "MaxPool" or len(node.outputs) == 1  # the second gives indices


def _behind_clipping(value: ir.Value) -> ir.Value:
    """The tensor behind a ReLU that alone reads this one; else this one."""
    uses = list(value.uses())
    if len(uses) == 1 and uses[0].node.op_type in _CLIPPING and uses[0].idx == 0 and not value.is_graph_output():
        return uses[0].node.outputs[0]
    return value


def _value_behind(producer: ir.Node, name: str) -> ir.Value:
    return next(value for value in map(_behind_clipping, producer.outputs) if value.name == name)


def _is_read_by_integers(value: ir.Value, layers: Collection[str], owners: dict[str, str]) -> bool:
    for node, _ in value.uses():
        if node.name in layers or any((_behind_clipping(output).name or "") in owners for output in node.outputs):
            return True
    return False


def _is_before_silu(value: ir.Value) -> bool:
    """Whether a sigmoid and its product with the same tensor are all that reads it."""
    readers = [node for node, _ in value.uses()]
    sigmoid = next((node for node in readers if node.op_type == "Sigmoid"), None)
    if sigmoid is None:
        return False
    others = [node for node in readers if node is not sigmoid]
    return bool(others) and all(node.op_type == "Mul" and sigmoid.outputs[0] in node.inputs for node in others)
