"""A graph as TensorRT's ONNX parser wants it: no local functions, thresholds that are inputs, operators that it knows.

What changes is how the graph is written, never what it computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import onnx_ir as ir

from boxwright.core.errors import UnsupportedError
from boxwright.export.decode_nms.function import DOMAIN, OP_TYPE, THRESHOLD_NAMES
from boxwright.export.graph_builder import GraphBuilder
from boxwright.export.known_sizes import fold_known_sizes
from boxwright.export.passes import split_sizes
from boxwright.export.tensorrt_limits import ParserLimits
from boxwright.export.thresholds import make_constant

_REDUCTIONS = tuple(f"Reduce{name}" for name in "L1 L2 LogSum LogSumExp Max Mean Min Prod SumSquare".split())
_OPSET_OF_REDUCTION_AXES = 18
# PyTorch's `sum`, `all`, `any` and the like of whole numbers and truths.
_REDUCTIONS_OF_INTEGERS = ("ReduceSum", "ReduceMin", "ReduceMax")
# Of ONNX's format; newer ones add nothing that such a graph uses, and old parsers warn of them.
_IR_VERSION = 8
# Of an image or a level: five levels of them are few enough for keys in float32, and for TensorRT's largest k.
_CANDIDATES_THAT_FIT = 700


def for_parser(model: ir.Model, limits: ParserLimits, *, source: str, fixed_thresholds: bool = False) -> ir.Model:
    """A copy that an ONNX parser of these limits reads.

    Args:
        model: exported; left as it is.
        limits: of the parser.
        source: named in errors.
        fixed_thresholds: whether the thresholds shall be constants; else they are inputs that must be given.

    Raises:
        UnsupportedError: where an operator cannot be said in the words of an opset that the parser knows.
    """
    copy = ir.from_proto(ir.to_proto(model))
    _check_inputs(copy, limits, source)
    _drop_functions(copy)
    if fixed_thresholds:
        make_constant(copy, source)
    else:
        for name in THRESHOLD_NAMES:
            # As initializers they would become constants, and an engine would never take another threshold.
            copy.graph.initializers.pop(name, None)
    _lower_opset(copy, limits.newest_opset, source)
    if not limits.has_layer_normalization:
        _replace_nodes(copy, "LayerNormalization", _layer_normalization)
    if not limits.reduces_integers:
        _reduce_in_float(copy)
    copy = fold_known_sizes(copy)
    _check_top_k(copy, limits, source)
    copy.ir_version = min(copy.ir_version, _IR_VERSION)
    return copy


def has_decode_nms(model: ir.Model) -> bool:
    """Whether a graph has the operator as a node, so that its engine needs the plugin."""
    return any((node.domain, node.op_type) == (DOMAIN, OP_TYPE) for node in model.graph)


def node_table(model: ir.Model) -> list[tuple[str, str]]:
    """Name and operator of each node, in the order of the file."""
    return [(str(node.name), node.op_type) for node in model.graph]


def _check_inputs(model: ir.Model, limits: ParserLimits, source: str) -> None:
    if not limits.has_uint8_inputs and any(value.dtype == ir.DataType.UINT8 for value in model.graph.inputs):
        raise UnsupportedError(
            source,
            expected="a graph that takes tensors, for TensorRT before 8.6",
            got="one that takes pixels (uint8)",
            fix="export it without --embed-preprocess",
        )


def _drop_functions(model: ir.Model) -> None:
    """Leave the operator's node alone: version 8 cannot read bodies, and later ones would take them for the plugin."""
    model.functions.clear()
    for node in model.graph:
        node.overload = ""


def _lower_opset(model: ir.Model, newest: int, source: str) -> None:
    opset = model.graph.opset_imports.get("", newest)
    if opset <= newest:
        return
    if opset > _OPSET_OF_REDUCTION_AXES:
        raise UnsupportedError(
            source,
            expected=f"operators of opset {newest} or older for this TensorRT",
            got=f"opset {opset}",
            fix=f"export it with --opset {newest}",
        )
    for node in list(model.graph):
        if node.domain == "":
            _lower_node(node, source)
    model.graph.opset_imports[""] = newest
    split_sizes.run(model)
    for node in model.graph:
        if node.op_type == "Split" and "num_outputs" in node.attributes:
            raise _not_in_17(node, "parts of an axis of unknown size", source)


def _lower_node(node: ir.Node, source: str) -> None:
    """Say a node of opset 18 in the words of 17."""
    if node.op_type in _REDUCTIONS:
        node.attributes.pop("noop_with_empty_axes", None)
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            node.attributes["axes"] = ir.AttrInt64s("axes", [int(axis) for axis in _numbers(node, 1, source)])
        node.resize_inputs(1)
    elif node.op_type == "Resize":
        if node.attributes.get_int("antialias", 0) != 0 or "axes" in node.attributes:
            raise _not_in_17(node, "antialiasing, or axes of its own", source)
        node.attributes.pop("antialias", None)
        node.attributes.pop("keep_aspect_ratio_policy", None)
    elif node.op_type == "Pad" and len(node.inputs) > 3:
        if node.inputs[3] is not None:
            raise _not_in_17(node, "axes of its own", source)
        node.resize_inputs(3)


def _reduce_in_float(model: ir.Model) -> None:
    """Reduce whole numbers as floats, which count to 2^24: there are no more anchors or proposals than that."""
    for node in [node for node in model.graph if node.op_type in _REDUCTIONS_OF_INTEGERS]:
        values, dtype = node.inputs[0], node.outputs[0].dtype
        if values is None or values.dtype not in (ir.DataType.INT32, ir.DataType.INT64):
            continue
        assert dtype is not None
        builder = GraphBuilder(str(node.name))
        reduced = ir.node(node.op_type, [builder.op("Cast", values, to=ir.DataType.FLOAT), *node.inputs[1:]])
        reduced.attributes.update(node.attributes)
        reduced.name, reduced.outputs[0].name = f"{node.name}/reduced", f"{node.outputs[0].name}/reduced"
        back = ir.node("Cast", [reduced.outputs[0]], attributes={"to": int(dtype)}, name=f"{node.name}/back")
        back.outputs[0].name = f"{node.outputs[0].name}/back"
        _exchange(model.graph, node, [*builder.nodes, reduced, back], back.outputs[0])


def _check_top_k(model: ir.Model, limits: ParserLimits, source: str) -> None:
    """Say what TensorRT cannot sort before it does, and what to do about it."""
    for node in model.graph:
        if node.op_type != "TopK":
            continue
        values, k = node.inputs[0], ir.convenience.get_const_tensor(cast("ir.Value", node.inputs[1]))
        got = ""
        if k is not None and int(k.numpy().reshape(-1)[0]) > limits.largest_k:
            got = f"{int(k.numpy().reshape(-1)[0])}"
        elif k is None and not limits.has_computed_k:
            got = "a number that is computed"
        elif values is not None and values.dtype == ir.DataType.INT64 and not limits.sorts_integers:
            got = "more than numbers of float32 can tell apart"
        if got:
            raise UnsupportedError(
                f"{source}: layer {node.name} (TopK)",
                expected=f"a fixed number of at most {limits.largest_k} candidates to sort, for this TensorRT",
                got=got,
                fix=f"export with --max-candidates {_CANDIDATES_THAT_FIT}, or with --nms plugin or none",
            )


def _numbers(node: ir.Node, index: int, source: str) -> np.ndarray:
    value = node.inputs[index]
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise _not_in_17(node, "axes that are computed", source)
    return tensor.numpy()


def _not_in_17(node: ir.Node, got: str, source: str) -> UnsupportedError:
    return UnsupportedError(
        f"{source}: node {node.name} ({node.op_type})",
        expected="what opset 17 has, for this TensorRT",
        got=got,
        fix="export it with --opset 17, or use TensorRT 10",
    )


def _replace_nodes(model: ir.Model, op_type: str, replacement: Callable[[GraphBuilder, ir.Node], ir.Value]) -> None:
    """Put other nodes in the place of each of an operator."""
    graph = model.graph
    for node in [node for node in graph if node.op_type == op_type and node.domain == ""]:
        builder = GraphBuilder(str(node.name))
        result = replacement(builder, node)
        _exchange(graph, node, builder.nodes, result)


def _exchange(graph: ir.Graph, node: ir.Node, nodes: list[ir.Node], result: ir.Value) -> None:
    """Put other nodes in the place of one with a single output."""
    result.type, result.shape = node.outputs[0].type, node.outputs[0].shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], nodes, list(node.outputs)[:1], [result])


def _layer_normalization(builder: GraphBuilder, node: ir.Node) -> ir.Value:
    """(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias, over the last axes.

    Source: ONNX, LayerNormalization of opset 17.
    """
    values, scale, bias = (*node.inputs, None)[:3]
    assert values is not None and scale is not None and values.shape is not None
    axis = node.attributes.get_int("axis", -1)
    axes = list(range(axis, 0)) if axis < 0 else list(range(axis, len(values.shape)))
    centred = builder.op("Sub", values, builder.op("ReduceMean", values, axes=axes, keepdims=1))
    variance = builder.op("ReduceMean", builder.op("Mul", centred, centred), axes=axes, keepdims=1)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    result = builder.op("Div", centred, builder.op("Sqrt", builder.op("Add", variance, epsilon)))
    result = builder.op("Mul", result, scale)
    return result if bias is None else builder.op("Add", result, bias)
