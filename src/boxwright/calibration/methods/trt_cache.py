"""A calibrator cache for TensorRT 8 to 10: a scale for every tensor of the float model, and the float model as it is.

TensorRT reads it with `trtexec --int8 --calib=FILE`, or through a calibrator's `read_calibration_cache`, and decides by
itself which layers it runs in INT8 ("implicit" quantization, which TensorRT 10 still knows and calls outdated). The
file is text: a line with TensorRT's version and the kind of calibrator, then the name of each tensor and the float32
scale largest magnitude / 127, in hexadecimal, its most significant byte first.

What that costs is measured on an emulation, which needs no TensorRT: Q/DQ pairs with the cache's scales before every
layer, as if TensorRT ran them all in INT8.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from boxwright.calibration.float_model import FloatModel, Layer
from boxwright.calibration.histograms import ChannelHistograms
from boxwright.calibration.layer_quantization import InputQuantization, WeightQuantization, round_weights
from boxwright.calibration.methods import MethodInputs, MethodResult
from boxwright.calibration.qdq import QuantizedLayer, insert_qdq
from boxwright.calibration.ranges import RangeMethod, choose_range
from boxwright.calibration.statistics import Statistics, check_finite, open_pieces
from boxwright.core.errors import InputError
from boxwright.core.files import atomic_file

# The kind of calibrator whose cache it says to be: the one that trtexec and most programs use.
_CALIBRATOR = "EntropyCalibration2"
# Written where TensorRT is not installed: the last of the series 8.
_USUAL_VERSION = (8, 6, 1)
_LARGEST_INTEGER = 127
_RANGES = RangeMethod(kind="entropy")
_MOST_VALUES_AN_IMAGE = 1 << 18


def run(inputs: MethodInputs) -> MethodResult:
    """Choose a range for every tensor up to the raw heads.

    Raises:
        InputError: for another engine than TensorRT, or where activations are not finite.
    """
    if inputs.engine != "tensorrt":
        raise InputError(
            "--method trt-cache", expected="the engine tensorrt", got=f"--engine {inputs.engine}", fix="leave it out"
        )
    scales = tensor_scales(inputs)
    version = installed_version() or _USUAL_VERSION
    return MethodResult(
        proto=None,
        description=f"cache for TensorRT's calibrator, {_RANGES}, {len(scales)} tensors",
        write_extra=partial(_write, scales=scales, version=version),
        emulation=emulate(inputs.model, scales),
    )


def tensor_scales(inputs: MethodInputs) -> dict[str, float]:
    """The scale of each float tensor that the model computes or is given, by name.

    What is never finite has none, and of what is partly so (scores padded with minus infinity) the finite part counts.

    Raises:
        InputError: where what goes into a layer, or a raw head, is not finite.
    """
    histograms: dict[str, ChannelHistograms] = {}
    must_be_finite = {layer.input_name for layer in inputs.model.layers}
    must_be_finite |= {value.name for value in inputs.model.raw_proto.graph.output}
    done = 0
    sessions = None
    for arrays, count in inputs.batches():
        if sessions is None:
            names = _float_tensors(inputs.model.raw_proto)
            histograms = {name: ChannelHistograms(1) for name in names}
            sessions = open_pieces(inputs.model, arrays, dict.fromkeys(names, 0), Statistics())
        for name in histograms.keys() & arrays.keys():
            _observe(name, arrays[name], histograms[name], done, name in must_be_finite)
        for session, piece in sessions:
            for name, array in zip(piece, session.run(piece, dict(arrays)), strict=True):  # type: ignore[attr-defined]
                _observe(name, array, histograms[name], done, name in must_be_finite)
        done += count
        inputs.on_progress(min(done, inputs.num_images))
    return {name: _scale_of(histogram) for name, histogram in histograms.items() if histogram.counts.any()}


def _observe(name: str, array: NDArray[Any], histogram: ChannelHistograms, offset: int, must_be_finite: bool) -> None:
    values = array.reshape(1, -1)
    if must_be_finite:
        check_finite(name, values)
    elif not np.isfinite(values).all():
        values = values[np.isfinite(values)][None]
    histogram.add(values, most_values=_MOST_VALUES_AN_IMAGE, offset=offset)


def _scale_of(histogram: ChannelHistograms) -> float:
    low, high = choose_range(histogram.distribution(), _RANGES)
    magnitude = max(-low, high)
    return magnitude / _LARGEST_INTEGER if magnitude > 0 else 1.0


def emulate(model: FloatModel, scales: Mapping[str, float]) -> onnx.ModelProto:
    """The model with its layers in INT8, those that predict too: symmetric, a scale a tensor and a weight's channel.

    Args:
        model: the float model.
        scales: by name of the tensor; layers whose input has none (it hangs on constants alone) stay in float.
    """
    inputs = {
        name: InputQuantization(factors=None, scale=scale, zero_point=0, activation_type="int8")
        for name, scale in scales.items()
    }
    layers = {
        layer.name: QuantizedLayer(layer=layer, input=inputs[layer.input_name], weight=_weights_of(layer))
        for layer in model.layers
        if layer.input_name in inputs
    }
    emulation = ir.from_proto(model.proto)
    insert_qdq(emulation, layers)
    return ir.to_proto(emulation)


def _weights_of(layer: Layer) -> WeightQuantization:
    values, scales = round_weights(layer.weight)
    return WeightQuantization(values=values, scales=scales, bias_change=np.zeros(len(values), dtype=np.float32))


def cache_text(scales: Mapping[str, float], version: tuple[int, int, int]) -> str:
    """The cache.

    Args:
        scales: by name of the tensor.
        version: of TensorRT: major, minor, patch.
    """
    lines = [f"TRT-{_version_number(version)}-{_CALIBRATOR}"]
    lines += [f"{name}: {struct.pack('>f', scale).hex()}" for name, scale in scales.items()]
    return "\n".join(lines) + "\n"


def installed_version() -> tuple[int, int, int] | None:
    """Of TensorRT; None where its Python package is not installed."""
    if importlib.util.find_spec("tensorrt") is None:
        return None
    import tensorrt

    major, minor, patch = (int(part) for part in tensorrt.__version__.split(".")[:3])
    return major, minor, patch


def _version_number(version: tuple[int, int, int]) -> int:
    """As NV_TENSORRT_VERSION counts: 8601 for 8.6.1, 100300 for 10.3.0."""
    major, minor, patch = version
    return major * (10000 if major >= 10 else 1000) + minor * 100 + patch


def _write(path: Path, *, scales: Mapping[str, float], version: tuple[int, int, int]) -> Path:
    target = path.with_suffix(".calib")
    with atomic_file(target) as temporary:
        temporary.write_text(cache_text(scales, version), encoding="utf-8")
    return target


def _float_tensors(proto: onnx.ModelProto) -> list[str]:
    """Names of the activation tensors that a scale means something to, in the order of the graph."""
    inferred = onnx.shape_inference.infer_shapes(proto)
    known = {
        value.name: value.type.tensor_type.elem_type
        for value in [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
    }
    constants = {tensor.name for tensor in proto.graph.initializer}
    names = [value.name for value in proto.graph.input]
    for node in inferred.graph.node:
        if node.op_type == "Constant" or set(filter(None, node.input)) <= constants:
            constants.update(node.output)
        else:
            names.extend(filter(None, node.output))
    return [name for name in names if name not in constants and known.get(name) == onnx.TensorProto.FLOAT]
