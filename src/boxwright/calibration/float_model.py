"""The float model that is to be quantized: its layers, and which of them may become INT8."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from boxwright.core.boxes import FloatArray
from boxwright.core.decode_spec import RAW_HEAD_NAMES
from boxwright.core.errors import InputError, ManifestError, ModelFileError
from boxwright.core.manifest import METADATA_KEY, Manifest
from boxwright.runtimes.model_file import inspect_onnx, locate_model_file

LayerKind = Literal["dense", "depthwise", "matmul"]
QUANTIZED_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
)
# Layers of fewer weights than this are arithmetic in disguise (the expectation over YOLOv8's distance bins), not work.
_FEWEST_WEIGHTS = 32
_OLDEST_OPSET = 13  # QuantizeLinear with a scale for each channel
_LARGEST_FILE_BYTES = 2**31 - 1  # of a Protocol Buffers message


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """A convolution, or a product with a constant matrix.

    Attributes:
        name: of its node; unique in the graph.
        kind: `dense` (convolutions, grouped ones too), `depthwise` or `matmul`.
        input_name: of the activation tensor.
        output_name: of its result.
        weight: (O, I/G, ...) of a convolution; (O, I) of a product.
        num_groups: G of a convolution, else 1.
        is_prediction: whether no other layer lies between it and the raw heads.
    """

    name: str
    kind: LayerKind
    input_name: str
    output_name: str
    weight: FloatArray
    num_groups: int = 1
    is_prediction: bool = False

    @property
    def num_inputs(self) -> int:
        """Channels of the activation tensor."""
        return int(self.weight.shape[1]) * self.num_groups

    @property
    def channel_axis(self) -> int:
        """The axis of the channels in the activation tensor."""
        return -1 if self.kind == "matmul" else 1


@dataclass(frozen=True, kw_only=True, eq=False)
class FloatModel:
    """An exported float model in memory.

    Attributes:
        source: its path, for messages.
        manifest: that came with it.
        proto: the whole model.
        raw_proto: the same up to the raw heads, which are its outputs.
        head_names: of the raw heads that the graph computes.
        layers: those before the raw heads, in the order of the graph.
    """

    source: str
    manifest: Manifest
    proto: onnx.ModelProto
    raw_proto: onnx.ModelProto
    head_names: tuple[str, ...]
    layers: tuple[Layer, ...]

    def layer(self, name: str) -> Layer:
        """The layer of that name."""
        return next(layer for layer in self.layers if layer.name == name)


def load_float_model(path: str | os.PathLike[str]) -> FloatModel:
    """Read an exported ONNX file for calibration.

    Raises:
        ModelFileError: where it cannot be read, is no ONNX file, has no raw heads, or no layer to quantize.
        ManifestError: where it has no manifest.
        InputError: where it is quantized already.
    """
    file = locate_model_file(path)
    if file.suffix.lower() != ".onnx":
        raise ModelFileError(
            str(path),
            expected="an ONNX file, which the engines' INT8 forms are made from",
            got=f"a {file.suffix or 'nameless'} file",
            fix="export with --format onnx and calibrate that file",
        )
    described = inspect_onnx(file)
    if METADATA_KEY not in described.metadata:
        raise ManifestError(
            str(path),
            expected="a model with Boxwright's manifest inside",
            got="none",
            fix="adopt it with: boxwright export FILE --head HEAD --labels LABELS --preprocess NAME --out OUT",
        )
    manifest = Manifest.from_json(described.metadata[METADATA_KEY], str(path))
    _check_size(str(path), [file, *described.external_paths])
    proto = _with_opset(onnx.load(file), str(path))
    _check_is_float(proto, manifest, str(path))
    model = ir.from_proto(proto)
    name_nodes(model)
    proto = ir.to_proto(model)
    heads = find_heads(model, str(path))
    layers = find_layers(model, heads)
    if not layers:
        raise ModelFileError(
            str(path),
            expected="convolutions or matrix products with constant weights before the raw heads",
            got="none",
            fix="calibrate a neural detector",
        )
    head_names = tuple(value.name or "" for value in heads)
    raw_proto = cut_at(proto, head_names)
    return FloatModel(
        source=str(path), manifest=manifest, proto=proto, raw_proto=raw_proto, head_names=head_names, layers=layers
    )


def find_heads(model: ir.Model, source: str) -> list[ir.Value]:
    """The raw heads of a graph: the tensors of those names that it computes.

    Raises:
        ModelFileError: where there are no boxes or classes among them.
    """
    computed = {value.name: value for node in model.graph for value in node.outputs}
    heads = [computed[name] for name in RAW_HEAD_NAMES if name in computed]
    if {"box_regression", "class_logits"} <= computed.keys():
        return heads
    raise ModelFileError(
        source,
        expected="a graph with the raw heads box_regression and class_logits",
        got="one without them",
        fix="export the model again with this version of boxwright",
    )


def find_layers(model: ir.Model, heads: Iterable[ir.Value]) -> tuple[Layer, ...]:
    """The layers that the raw heads depend on, in the order of the graph."""
    before_heads = _ancestors(heads)
    found = {node: layer for node in model.graph if node in before_heads and (layer := _layer_of(node)) is not None}
    with_layers_after: set[ir.Node] = set()
    for node in found:
        with_layers_after |= _ancestors([value for value in node.inputs[:1] if value is not None])
    return tuple(
        Layer(
            name=layer.name,
            kind=layer.kind,
            input_name=layer.input_name,
            output_name=layer.output_name,
            weight=layer.weight,
            num_groups=layer.num_groups,
            is_prediction=node not in with_layers_after,
        )
        for node, layer in found.items()
    )


def name_nodes(model: ir.Model) -> None:
    """Give every node of the main graph a name of its own, so that layers can be spoken of."""
    taken: set[str] = set()
    for index, node in enumerate(model.graph):
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}_{index}"
            while node.name in taken:
                node.name += "_"
        taken.add(node.name)


def cut_at(proto: onnx.ModelProto, output_names: Iterable[str]) -> onnx.ModelProto:
    """The part of a model that computes these tensors, which become its outputs."""
    model = ir.from_proto(proto)
    graph = model.graph
    computed = {value.name: value for node in graph for value in node.outputs}
    outputs = [computed[name] for name in output_names]
    graph.outputs.clear()
    graph.outputs.extend(outputs)
    for value in outputs:
        if value.dtype is None:
            value.dtype = ir.DataType.FLOAT
    needed = _ancestors(outputs)
    graph.remove([node for node in graph if node not in needed], safe=True)
    used = {value for node in graph for value in node.inputs}
    for name, value in list(graph.initializers.items()):
        if value not in used:
            if value.is_graph_input():
                graph.inputs.remove(value)
            del graph.initializers[name]
    return ir.to_proto(model)


def _ancestors(values: Iterable[ir.Value]) -> set[ir.Node]:
    """All nodes that these values depend on."""
    pending = [value.producer() for value in values]
    seen: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        pending.extend(value.producer() for value in node.inputs if value is not None)
        for attribute in node.attributes.values():
            # Values of this graph that a subgraph reads count as its node's inputs.
            if attribute.type == ir.AttributeType.GRAPH:
                for inner in attribute.as_graph().all_nodes():
                    pending.extend(value.producer() for value in inner.inputs if value is not None)
    return seen


def _layer_of(node: ir.Node) -> Layer | None:
    """The layer that a node is, prediction left open; None for all other nodes."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "Gemm", "MatMul"):
        return None
    activation, weight_value = node.inputs[0], node.inputs[1]
    tensor = None if weight_value is None else ir.convenience.get_const_tensor(weight_value)
    if activation is None or tensor is None or tensor.dtype != ir.DataType.FLOAT:
        return None
    if ir.convenience.get_const_tensor(activation) is not None:
        return None
    if node.op_type == "Conv" and _is_one_place(activation):
        return None
    weight = np.asarray(tensor.numpy(), dtype=np.float32)
    num_groups = 1
    kind: LayerKind = "matmul"
    if node.op_type == "Conv":
        num_groups = node.attributes.get_int("group", 1)
        kind = "depthwise" if num_groups > 1 and weight.shape[1] == 1 else "dense"
    elif node.op_type == "MatMul":
        if weight.ndim != 2:
            return None
        weight = weight.T
    elif not _is_plain_gemm(node):
        return None
    elif node.attributes.get_int("transB", 0) == 0:
        weight = weight.T
    if weight.size < _FEWEST_WEIGHTS:
        return None
    return Layer(
        name=node.name or "",
        kind=kind,
        input_name=activation.name or "",
        output_name=node.outputs[0].name or "",
        weight=np.ascontiguousarray(weight),
        num_groups=num_groups,
    )


def _is_one_place(value: ir.Value) -> bool:
    """Whether a map has a single place, as in squeeze-and-excitation.

    Convolving it is no work worth INT8, and OpenVINO 2026.4 does it wrongly: where the batch is dynamic and 1 image
    comes, a convolution into such a map with a quantization behind it gives values that are far too small.
    """
    shape = value.shape
    return shape is not None and len(shape) > 2 and all(shape[axis] == 1 for axis in range(2, len(shape)))


def _is_plain_gemm(node: ir.Node) -> bool:
    """Whether it is x W + b, without other factors."""
    attributes = node.attributes
    return (
        attributes.get_int("transA", 0) == 0
        and attributes.get_float("alpha", 1.0) == 1.0
        and attributes.get_float("beta", 1.0) == 1.0
    )


def _check_size(source: str, files: Iterable[os.PathLike[str]]) -> None:
    total = sum(os.path.getsize(file) for file in files)
    if total > _LARGEST_FILE_BYTES:
        raise ModelFileError(
            source,
            expected="a model of at most 2 GB",
            got=f"{total / 1e9:.1f} GB",
            fix="calibrate a smaller variant",
        )


def _check_is_float(proto: onnx.ModelProto, manifest: Manifest, source: str) -> None:
    nodes = list(proto.graph.node) + [node for function in proto.functions for node in function.node]
    found = next((node.op_type for node in nodes if node.op_type in QUANTIZED_OPS), None)
    if found is None and manifest.precision == "fp32":
        return
    raise InputError(
        source,
        expected="a float model",
        got=f"one with {found} nodes" if found else f"one in {manifest.precision}",
        fix="calibrate the FP32 file that it was made from",
    )


def _with_opset(proto: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """The model in an opset that knows scales for each channel."""
    version = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version >= _OLDEST_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, 17)
    except Exception as error:  # the converter raises whatever its adapters do
        raise ModelFileError(
            source,
            expected=f"opset {_OLDEST_OPSET} or newer, which INT8 with a scale for each channel needs",
            got=f"opset {version}, and raising it failed: {error}",
            fix="export the model again with --opset 17",
        ) from error
