"""A builder of TensorRT for tests: it reads the ONNX file that it is given, keeps what it is told, and gives bytes.

Its classes have the members of a real generation alone (`recorded_tensorrt.py`). What was done is kept in `Record`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import onnx

from recorded_tensorrt import SIGNATURES, recorded_module


@dataclass
class Record:
    """What the fake was told, and how it shall behave.

    Attributes:
        refused_op: operator that its parser does not know.
        build_errors: that it logs instead of building.
        num_dla_cores: of the machine.
        starts: whether there is a driver.
        takes_cache: whether a timing cache fits.
    """

    refused_op: str | None = None
    build_errors: Sequence[str] = ()
    num_dla_cores: int = 0
    starts: bool = True
    takes_cache: bool = True
    network_flags: int | None = None
    model: onnx.ModelProto | None = None
    layers: list[Any] = field(default_factory=list)
    flags: set[str] = field(default_factory=set)
    cleared: set[str] = field(default_factory=set)
    pools: dict[str, int] = field(default_factory=dict)
    tactic_sources: int | None = None
    profiles: list[dict[str, tuple[Any, Any, Any]]] = field(default_factory=list)
    calibration_profile: Any = None
    calibrated_on: list[list[int]] = field(default_factory=list)
    timing_caches: list[bytes] = field(default_factory=list)
    device: dict[str, Any] = field(default_factory=dict)

    def float_layers(self) -> set[str]:
        """The layers that were told to stay in float32."""
        return {layer._name for layer in self.layers if layer._precision is not None}


def fake_builder_module(version: str, record: Record) -> ModuleType:
    """A module `tensorrt` of a generation, for building alone."""
    implementations = classes(record, SIGNATURES[version]["enums"]["LayerType"])
    module = recorded_module(version, implementations, {"init_libnvinfer_plugins": lambda logger, namespace: True})
    hold(module, implementations)
    return module


def classes(record: Record, layer_types: Mapping[str, int]) -> dict[str, type]:
    """The builder's classes, to be put together with those of a runtime."""

    class Tensor:
        def __init__(self, name: str, shape: tuple[int, ...], dtype: int) -> None:
            self._name, self._shape, self._dtype = name, shape, dtype

        name = property(lambda self: self._name)
        shape = property(lambda self: self._shape)
        dtype = property(lambda self: self._dtype)

    class Layer:
        _precision: Any = None

        def __init__(self, name: str, kind: int, inputs: list[Any], outputs: list[Any]) -> None:
            self._name, self._kind, self._inputs, self._outputs = name, kind, inputs, outputs
            self._output_types: dict[int, Any] = {}

        name = property(lambda self: self._name)
        type = property(lambda self: self._kind)
        num_inputs = property(lambda self: len(self._inputs))
        num_outputs = property(lambda self: len(self._outputs))
        precision = property(lambda self: self._precision, lambda self, value: setattr(self, "_precision", value))

        def get_input(self, index: int) -> Any:
            return self._inputs[index]

        def get_output(self, index: int) -> Any:
            return self._outputs[index]

        def set_output_type(self, index: int, dtype: Any) -> None:
            self._output_types[index] = dtype

    class Network:
        num_layers = property(lambda self: len(record.layers))
        num_inputs = property(lambda self: len(self._inputs()))

        def _inputs(self) -> list[Any]:
            assert record.model is not None
            given = {tensor.name for tensor in record.model.graph.initializer}
            return [value for value in record.model.graph.input if value.name not in given]

        def get_layer(self, index: int) -> Any:
            return record.layers[index]

        def get_input(self, index: int) -> Any:
            value = self._inputs()[index]
            sizes = value.type.tensor_type.shape.dim
            shape = tuple(size.dim_value if size.HasField("dim_value") else -1 for size in sizes)
            return held["ITensor"](value.name, shape, 0)

    class ParserError:
        def __init__(self, node: int, model: onnx.ModelProto) -> None:
            self._node, self._model = node, model

        def desc(self) -> str:
            return "No importer registered\n for it"

        def node(self) -> int:
            return self._node

        def node_name(self) -> str:
            return self._model.graph.node[self._node].name

        def node_operator(self) -> str:
            return self._model.graph.node[self._node].op_type

    class Parser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._errors = network, []

        num_errors = property(lambda self: len(self._errors))

        def get_error(self, index: int) -> Any:
            return self._errors[index]

        def parse_from_file(self, model: str) -> bool:
            record.model = onnx.load(model)
            assert not record.model.functions
            types = _types(record.model)
            for index, node in enumerate(record.model.graph.node):
                if node.op_type == record.refused_op:
                    self._errors.append(held["ParserError"](index, record.model))
                    return False
                kind = layer_types[{"DecodeNMS": "PLUGIN_V2", "Shape": "SHAPE"}.get(node.op_type, "ELEMENTWISE")]
                outputs = [held["ITensor"](name, (), types.get(name, 0)) for name in node.output]
                inputs = [held["ITensor"](name, (), types.get(name, 0)) if name else None for name in node.input]
                record.layers.append(held["ILayer"](node.name, kind, inputs, outputs))
            return True

    class OptimizationProfile:
        def __init__(self) -> None:
            self._shapes: dict[str, tuple[Any, Any, Any]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            self._shapes[input] = (tuple(min), tuple(opt), tuple(max))

    class TimingCache:
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> bytes:
            return self._content + b"+measured"

    class Config:
        _calibrator: Any = None
        _monitor: Any = None
        _cache: Any = None

        def set_flag(self, flag: Any) -> None:
            record.flags.add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            record.cleared.add(flag.name)

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            record.pools[pool.name] = pool_size

        def set_tactic_sources(self, tactic_sources: int) -> bool:
            record.tactic_sources = tactic_sources
            return True

        def add_optimization_profile(self, profile: Any) -> int:
            record.profiles.append(profile._shapes)
            return len(record.profiles) - 1

        def set_calibration_profile(self, profile: Any) -> bool:
            record.calibration_profile = profile._shapes
            return True

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            return held["ITimingCache"](serialized_timing_cache)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            if cache._content and not record.takes_cache:
                return False
            record.timing_caches.append(cache._content)
            self._cache = cache
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

        int8_calibrator = property(
            lambda self: self._calibrator, lambda self, value: setattr(self, "_calibrator", value)
        )
        progress_monitor = property(lambda self: self._monitor, lambda self, value: setattr(self, "_monitor", value))
        DLA_core = property(lambda self: 0, lambda self, value: record.device.update(core=value))
        default_device_type = property(lambda self: 0, lambda self, value: record.device.update(type=value.name))

    class Builder:
        def __init__(self, logger: Any) -> None:
            if not record.starts:
                logger.log(logger.Severity.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger

        num_DLA_cores = property(lambda self: record.num_dla_cores)

        def create_network(self, flags: int = 0) -> Any:
            record.network_flags = flags
            return held["INetworkDefinition"]()

        def create_builder_config(self) -> Any:
            return held["IBuilderConfig"]()

        def create_optimization_profile(self) -> Any:
            return held["IOptimizationProfile"]()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            for message in record.build_errors:
                self._logger.log(self._logger.Severity.ERROR, message)
            if record.build_errors:
                return None
            if config._monitor is not None:
                config._monitor.phase_start("Building Engine", None, 2)
                assert config._monitor.step_complete("Building Engine", 0)
                config._monitor.phase_finish("Building Engine")
            if config._calibrator is not None:
                _calibrate(config._calibrator, network, record)
            assert record.model is not None
            return b"ENGINE " + hashlib.sha256(record.model.SerializeToString()).digest()

    held: dict[str, type] = {
        "Builder": Builder,
        "IBuilderConfig": Config,
        "IOptimizationProfile": OptimizationProfile,
        "INetworkDefinition": Network,
        "ILayer": Layer,
        "ITensor": Tensor,
        "OnnxParser": Parser,
        "ParserError": ParserError,
        "ITimingCache": TimingCache,
    }
    return held


def hold(module: ModuleType, held: dict[str, type]) -> None:
    """Let the fake make what it gives out from the classes that show recorded members alone."""
    for name in held:
        if hasattr(module, name):
            held[name] = getattr(module, name)


def _calibrate(calibrator: Any, network: Any, record: Record) -> None:
    """As TensorRT does: with a cache no image is asked for."""
    assert calibrator.get_batch_size() >= 1
    if calibrator.read_calibration_cache() is not None:
        return
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    while (addresses := calibrator.get_batch(names)) is not None:
        assert len(addresses) == len(names)
        record.calibrated_on.append(list(addresses))
    calibrator.write_calibration_cache(memoryview(b"TRT-0000-EntropyCalibration2\n"))


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """TensorRT's type of each value: FLOAT 0, HALF 1, INT32 3, BOOL 4; 64-bit integers are INT32 to it."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    known = {onnx.TensorProto.FLOAT: 0, onnx.TensorProto.FLOAT16: 1, onnx.TensorProto.BOOL: 4}
    values = [*inferred.value_info, *inferred.output, *inferred.input]
    types = {tensor.name: known.get(tensor.data_type, 3) for tensor in inferred.initializer}
    return types | {value.name: known.get(value.type.tensor_type.elem_type, 3) for value in values}
