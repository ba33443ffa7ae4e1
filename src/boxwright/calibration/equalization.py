"""Cross-layer equalisation: the channels between two convolutions are made alike, and the function stays the same.

What a layer gives is divided by a factor for each channel, which goes into its weights and its bias, and the weights of
the next layer take it up. That is exact where only ReLU, LeakyReLU or a maximum lies between, and costs nothing at run
time; an engine that has one scale for a whole tensor loses less by it.

Source: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019, sec. 4.1; the
factors follow the activations that images show instead of the weights alone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper

from boxwright.calibration.float_model import FloatModel, Layer
from boxwright.calibration.histograms import DoubleArray
from boxwright.calibration.layer_quantization import scaled_weight
from boxwright.calibration.sessions import Tensors
from boxwright.calibration.statistics import collect_statistics
from boxwright.core.boxes import FloatArray

_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "MaxPool"})
_QUANTILE = 0.9999
# A quiet channel is amplified by at most this much against the loudest.
_LARGEST_AMPLIFICATION = 8.0
_NUM_IMAGES = 24


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """Two layers that a factor may be moved between.

    Attributes:
        first: gives the channels.
        second: alone reads them.
        observed: tensor between them that is quantized first: behind a ReLU, which costs no step of its own, else the
            result of the first layer, whose negative values a LeakyReLU makes small only later.
    """

    first: Layer
    second: Layer
    observed: str


def find_chains(model: FloatModel) -> list[Chain]:
    """All pairs of layers of a model that can be equalised."""
    graph = model.proto.graph
    layers = {layer.name: layer for layer in model.layers}
    constants = {tensor.name for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    readers: dict[str, list[onnx.NodeProto | None]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    for value in (*graph.output, *model.raw_proto.graph.output):
        readers[value.name] += [None, None]  # what is read outside must stay as it is

    def is_own(node: onnx.NodeProto) -> bool:
        """Whether a convolution's weights and bias are constants that nothing else reads."""
        return all(name in constants and uses[name] == 1 for name in node.input[1:] if name)

    found = []
    for node in graph.node:
        if node.op_type != "Conv" or node.name not in layers or not is_own(node):
            continue
        tensor = observed = node.output[0]
        reader = _only(readers[tensor])
        while reader is not None and reader.op_type in _HOMOGENEOUS:
            if reader.op_type == "Relu" and tensor == node.output[0]:
                observed = reader.output[0]
            tensor = reader.output[0]
            reader = _only(readers[tensor])
        if reader is None or reader.op_type != "Conv" or reader.name not in layers:
            continue
        if reader.input[0] == tensor and is_own(reader):
            found.append(Chain(first=layers[node.name], second=layers[reader.name], observed=observed))
    return found


def _only(readers: list[onnx.NodeProto | None]) -> onnx.NodeProto | None:
    return readers[0] if len(readers) == 1 else None


def equalize(model: FloatModel, batches: Iterable[tuple[Tensors, int]]) -> FloatModel | None:
    """The same function with channels that are alike, or None where nothing can be done.

    Args:
        model: the float model.
        batches: inputs of the network, and how many images count in each; the first of them are looked at.
    """
    chains = find_chains(model)
    if not chains:
        return None
    done = 0
    first_batches = []
    for inputs, count in batches:
        first_batches.append((inputs, count, 0))
        done += count
        if done >= _NUM_IMAGES:
            break
    statistics = collect_statistics(model, first_batches, tensors={chain.observed: 1 for chain in chains})
    factors = {
        chain.first.name: _factors(chain.second, statistics.of(chain.observed).magnitudes(_QUANTILE))
        for chain in chains
    }
    return _with_factors(model, chains, factors)


def _factors(second: Layer, found: DoubleArray) -> DoubleArray:
    """By what each channel is divided; for dense layers as SmoothQuant does, since their weights have a say."""
    magnitudes = np.maximum(found, max(found.max(), 1e-12) / _LARGEST_AMPLIFICATION)
    if second.kind != "depthwise":
        grouped = np.abs(second.weight).reshape(second.num_groups, -1, *second.weight.shape[1:])
        weights = grouped.max(axis=(1, *range(3, grouped.ndim))).reshape(-1).astype(np.float64)
        weights = np.maximum(weights, max(weights.max(), 1e-12) / _LARGEST_AMPLIFICATION)
        magnitudes = np.sqrt(magnitudes / weights)
    result: DoubleArray = magnitudes / np.exp(np.log(magnitudes).mean())
    return result


def _with_factors(model: FloatModel, chains: list[Chain], factors: Mapping[str, DoubleArray]) -> FloatModel:
    weights: dict[str, FloatArray] = {layer.name: layer.weight for layer in model.layers}
    layers = {layer.name: layer for layer in model.layers}
    for chain in chains:
        divisors = factors[chain.first.name].astype(np.float32)
        first, second = chain.first.name, chain.second.name
        weights[first] = weights[first] / divisors.reshape(-1, *[1] * (weights[first].ndim - 1))
        weights[second] = scaled_weight(replace(layers[second], weight=weights[second]), divisors)
    nodes = {node.name: node for node in model.proto.graph.node}
    arrays: dict[str, FloatArray] = {}
    biases = {
        nodes[name].input[2]: values.astype(np.float32)
        for name, values in factors.items()
        if len(nodes[name].input) > 2 and nodes[name].input[2]
    }
    for chain in chains:
        for layer in (chain.first, chain.second):
            arrays[nodes[layer.name].input[1]] = weights[layer.name]
    return replace(
        model,
        proto=_with_arrays(model.proto, arrays, biases),
        raw_proto=_with_arrays(model.raw_proto, arrays, biases),
        layers=tuple(replace(layer, weight=weights[layer.name]) for layer in model.layers),
    )


def _with_arrays(
    proto: onnx.ModelProto, arrays: Mapping[str, FloatArray], divisors: Mapping[str, FloatArray]
) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        new = arrays.get(tensor.name)
        if tensor.name in divisors:
            new = numpy_helper.to_array(tensor).astype(np.float32) / divisors[tensor.name]
        if new is not None:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new, dtype=np.float32), tensor.name))
    return copy
