"""The graph up to the raw heads, for timing the engine without decoding and NMS.

A file of stage `raw` is that graph itself. Of one that goes on to detections, a copy is cut at the tensors that still
bear the raw heads' names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxwright.core.errors import MissingDependencyError, UnsupportedError
from boxwright.runtimes.backend import Backend, open_backend
from boxwright.runtimes.detector import Detector
from boxwright.runtimes.model_file import locate_model_file
from boxwright.runtimes.pixel_detector import PixelDetectorBackend

if TYPE_CHECKING:
    import onnx
    import openvino

_RANKS = {"box_regression": 3, "class_logits": 3, "objectness": 2}
_MAX_PROTOBUF_BYTES = 2**31 - 1


def open_raw_engine(path: str | os.PathLike[str], detector: Detector, *, num_threads: int, work_dir: Path) -> Backend:
    """Open the bare engine on the raw graph of a detector's file, in the detector's precision.

    Args:
        path: of the detector's model file.
        detector: opened from it; where it decodes on the host, its own engine is returned.
        num_threads: of the CPU; 0 leaves it to the engine.
        work_dir: an existing folder for the cut graph.

    Raises:
        UnsupportedError: where the graph cannot be cut.
    """
    backend = detector.backend
    if detector.manifest.stage != "detections":
        return backend
    if isinstance(backend, PixelDetectorBackend):
        raise UnsupportedError(
            str(path), expected="a network", got="a detector without a graph", fix="look at the stage infer instead"
        )
    source = locate_model_file(path)
    cutters = {".onnx": cut_onnx, ".xml": cut_openvino}
    if source.suffix.lower() not in cutters:
        raise UnsupportedError(
            str(path),
            expected="a file whose graph can be cut (ONNX, OpenVINO)",
            got=repr(source.suffix),
            fix="export it with --nms none to time the engine alone",
        )
    cut = work_dir / f"raw_heads{source.suffix.lower()}"
    cutters[source.suffix.lower()](source, cut)
    return open_backend(
        cut, backend=backend.name, device=backend.device, precision=backend.precision, num_threads=num_threads
    )


def cut_onnx(source: Path, target: Path) -> tuple[str, ...]:
    """Write a copy of an ONNX file that ends at its raw heads.

    Returns:
        The names of its outputs.

    Raises:
        UnsupportedError: where no tensor bears their names.
        MissingDependencyError: where the package onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError("onnx", extra="bench", needed_for="timing the engine alone") from error
    model = onnx.load(os.fspath(source))
    graph = model.graph
    heads = _heads_among(name for node in graph.node for name in node.output)
    if not heads:
        raise _nothing_to_cut(source)
    nodes, needed = _upstream(graph, heads)
    del model.metadata_props[:]  # the manifest would describe another graph
    _keep_only(graph.node, nodes)
    _keep_only(graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed])
    _keep_only(graph.sparse_initializer, [t for t in graph.sparse_initializer if t.values.name in needed])
    _keep_only(graph.input, [value for value in graph.input if value.name in needed])
    del graph.output[:]
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    for name in heads:
        any_shape = [None] * _RANKS[name]
        head = onnx.helper.make_tensor_value_info(name, types.get(name, onnx.TensorProto.FLOAT), any_shape)
        graph.output.append(head)
    is_large = model.ByteSize() >= _MAX_PROTOBUF_BYTES
    onnx.save(model, os.fspath(target), save_as_external_data=is_large)
    return heads


def cut_openvino(source: Path, target: Path) -> tuple[str, ...]:
    """Write a copy of an OpenVINO IR that ends at its raw heads.

    Returns:
        The names of its outputs.

    Raises:
        UnsupportedError: where no tensor bears their names.
    """
    import openvino

    model = openvino.Core().read_model(source)
    outputs = {name: port for node in model.get_ordered_ops() for port in node.outputs() for name in port.get_names()}
    heads = _heads_among(outputs)
    if not heads:
        raise _nothing_to_cut(source)
    results = [openvino.opset13.result(outputs[name]) for name in heads]
    used = _upstream_parameters(outputs[name].get_node() for name in heads)
    parameters = [node for node in model.get_parameters() if node.get_friendly_name() in used]
    openvino.save_model(openvino.Model(results, parameters, "raw_heads"), target, compress_to_fp16=False)
    return heads


def _heads_among(names: Iterable[str]) -> tuple[str, ...]:
    """The raw heads among these names; the operator's other inputs cost nothing to compute."""
    present = set(names)
    heads = tuple(name for name in _RANKS if name in present)
    return heads if {"box_regression", "class_logits"} <= present else ()


def _keep_only(field: Any, entries: Sequence[Any]) -> None:
    """Make these the only entries of a repeated field that they come from."""
    copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
    del field[:]
    field.extend(copies)


def _upstream(graph: onnx.GraphProto, outputs: Sequence[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that the outputs depend on, in order, and the names of all tensors that these read."""
    needed = set(outputs)
    nodes = []
    for node in reversed(graph.node):  # in an ONNX graph a node comes after what it reads
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_names_read(node))
    return nodes[::-1], needed


def _names_read(node: onnx.NodeProto) -> set[str]:
    names = set(node.input)
    for attribute in node.attribute:
        for subgraph in [attribute.g, *attribute.graphs]:
            for inner in subgraph.node:
                names |= _names_read(inner)  # what the subgraph computes itself is in it too, and does no harm
            names.update(value.name for value in subgraph.output)
    return names


def _upstream_parameters(nodes: Iterable[Any]) -> set[str]:
    """Friendly names of the parameters that the nodes depend on."""
    pending: list[openvino.Node] = list(nodes)
    seen: set[str] = set()
    parameters: set[str] = set()
    while pending:
        node = pending.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        if node.get_type_name() == "Parameter":
            parameters.add(node.get_friendly_name())
        pending += [value.get_source_output().get_node() for value in node.inputs()]
    return parameters


def _nothing_to_cut(source: Path) -> UnsupportedError:
    return UnsupportedError(
        str(source),
        expected="a graph that keeps the tensors box_regression and class_logits",
        got="one without them",
        fix="export it again with this version, or with --nms none, to time the engine alone",
    )
