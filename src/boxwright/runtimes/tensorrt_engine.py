"""Opening a TensorRT engine: whether it fits this machine, what goes in and out, and which sizes it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxwright.core.errors import ModelFileError, UnsupportedError
from boxwright.core.manifest import METADATA_KEY
from boxwright.runtimes.backend import TensorSpec
from boxwright.runtimes.cuda_runtime import Cuda, CudaDevice, load_cuda
from boxwright.runtimes.device_names import parse_device
from boxwright.runtimes.engine_sidecar import (
    EngineSidecar,
    check_fits_machine,
    check_intact,
    read_sidecar,
    sidecar_path,
)
from boxwright.runtimes.model_file import inspect_onnx, onnx_float
from boxwright.runtimes.model_fit import THRESHOLD_INPUTS
from boxwright.runtimes.plugin_build import BUILD_COMMAND
from boxwright.runtimes.tensorrt_library import (
    PLUGIN_NODE,
    dtype_of,
    import_tensorrt,
    load_plugin_if_built,
    load_plugins,
    tensorrt_log,
)
from boxwright.runtimes.tensorrt_profiles import Limits, Shape, find_profile, read_profiles

_REBUILD = "boxwright export MODEL.onnx --format tensorrt"
_LEAST_ENGINE_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class OpenedEngine:
    """An engine in a GPU's memory, and what its runs need to know.

    Attributes:
        trt: the package.
        cuda: to reach the GPU.
        device: the GPU.
        engine: tensorrt.ICudaEngine.
        name: of the file, for errors.
        sidecar: that lies beside the file; None where there is none.
        manifest_json: of the sidecar, or of the ONNX file of the same name; None where there is neither.
        inputs: by name.
        outputs: by name.
        fixed_thresholds: those that are constants in the engine, by name.
        host_inputs: that TensorRT reads on the CPU's side, since sizes depend on their values.
        profiles: of each, the smallest and the largest shape of every input.
    """

    trt: Any
    cuda: Cuda
    device: CudaDevice
    engine: Any
    name: str
    sidecar: EngineSidecar | None
    manifest_json: str | None
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    fixed_thresholds: Mapping[str, float]
    host_inputs: frozenset[str]
    profiles: tuple[Limits, ...]

    @property
    def has_open_sizes(self) -> bool:
        """Whether the engine takes inputs of several shapes."""
        return any(None in spec.shape for spec in self.inputs.values())

    def find_profile(self, shapes: Mapping[str, Shape]) -> int:
        """The first optimisation profile that takes inputs of these shapes.

        Raises:
            InputError: where none does.
        """
        return find_profile(self.profiles, shapes, self.name)


def open_engine(file: Path, device: str) -> OpenedEngine:
    """Bring an engine into a GPU's memory.

    Args:
        file: that exists.
        device: "cuda", or "cuda:1" for the second.

    Raises:
        ModelFileError: where the file is damaged, or was built for another GPU or TensorRT.
        ManifestError: where what lies beside it cannot be used.
        UnsupportedError: where the driver, the GPU or the plugin is missing, or its memory is too small.
        MissingDependencyError: where a package is missing.
    """
    name = str(file)
    index = _device_index(name, device)
    sidecar = read_sidecar(file) if sidecar_path(file).exists() else None
    content = _read(file, sidecar)
    trt = import_tensorrt(name)
    cuda = load_cuda(name)
    _check_index(name, index, cuda.num_devices())
    cuda.select(index)
    gpu = cuda.device(index)
    if sidecar is not None:
        check_fits_machine(
            file,
            sidecar,
            tensorrt_version=trt.__version__,
            gpu_name=gpu.name,
            compute_capability=gpu.compute_capability,
        )
        load_plugins(trt, decode_nms=sidecar.needs_plugin, needed_for=name)
    elif PLUGIN_NODE.encode() in content:
        load_plugin_if_built(trt, name)
    else:
        load_plugins(trt, decode_nms=False, needed_for=name)
    engine = _deserialize(trt, content, name, sidecar)
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    inputs = [entry for entry in names if engine.get_tensor_mode(entry) == trt.TensorIOMode.INPUT]
    host = frozenset(entry for entry in inputs if engine.get_tensor_location(entry) == trt.TensorLocation.HOST)
    profiles = read_profiles(engine, inputs, host)
    return OpenedEngine(
        trt=trt,
        cuda=cuda,
        device=gpu,
        engine=engine,
        name=name,
        sidecar=sidecar,
        manifest_json=_manifest_json(file, sidecar),
        inputs={entry: _spec(trt, engine, entry, name, profiles) for entry in inputs},
        outputs={entry: _spec(trt, engine, entry, name, ()) for entry in names if entry not in inputs},
        fixed_thresholds=_fixed_thresholds(file, inputs) if sidecar is None else sidecar.fixed_thresholds,
        host_inputs=host,
        profiles=profiles,
    )


def _device_index(name: str, device: str) -> int:
    parsed = parse_device(device, ("cuda", "gpu"))
    if parsed is None:
        raise UnsupportedError(
            name,
            expected="the device cuda, or cuda:1 and so on, for a TensorRT engine",
            got=repr(device),
            fix="leave the device out, or run the ONNX file there",
        )
    return parsed.index


def _check_index(name: str, index: int, num_devices: int) -> None:
    if index >= num_devices:
        known = ", ".join(f"cuda:{number}" for number in range(num_devices))
        raise UnsupportedError(name, expected=f"a GPU that is here ({known})", got=f"cuda:{index}", fix="pass another")


def _read(file: Path, sidecar: EngineSidecar | None) -> bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelFileError(
            str(file), expected="a file that can be read", got=error.strerror or str(error), fix="check the path"
        ) from error
    if sidecar is not None:
        check_intact(file, content, sidecar)
    elif len(content) < _LEAST_ENGINE_BYTES:  # TensorRT reads beyond the end of very short ones
        raise _damaged(str(file), f"a file of {len(content)} bytes", f"run: {_REBUILD}")
    return content


def _deserialize(trt: Any, content: bytes, name: str, sidecar: EngineSidecar | None) -> Any:
    log = tensorrt_log(trt)
    log.errors.clear()
    try:
        runtime = trt.Runtime(log)
    except (TypeError, RuntimeError) as error:  # its binding's way to say that there is none
        raise UnsupportedError(
            name, expected="a TensorRT that starts", got=log.errors.cause, fix="see what nvidia-smi says"
        ) from error
    if sidecar is not None and sidecar.dla_core is not None:
        runtime.DLA_core = sidecar.dla_core
    if sidecar is not None and sidecar.version_compatible:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise _refusal(name, log.errors.lines, f"run: {sidecar.rebuild_command if sidecar else _REBUILD}")
    return engine


def _refusal(name: str, lines: tuple[str, ...], rebuild: str) -> ModelFileError | UnsupportedError:
    """What TensorRT's complaint about an engine means."""
    text = " ".join(lines)
    cause = lines[0] if lines else "an error without a message"
    if PLUGIN_NODE in text and "plugin" in text.lower():
        return UnsupportedError(
            name,
            expected="Boxwright's plugin of TensorRT for the node boxwright.DecodeNMS",
            got=cause,
            fix=f"run: {BUILD_COMMAND}, or export with --nms graph",
        )
    if "memory" in text.lower() and "alloc" in text.lower():
        return out_of_memory(name, cause)
    return _damaged(name, cause, rebuild)


def out_of_memory(name: str, cause: str) -> UnsupportedError:
    """The error where the GPU's memory is too small for an engine."""
    return UnsupportedError(
        name,
        expected="enough GPU memory for the engine",
        got=cause,
        fix="end other programs on this GPU, or build the engine with a smaller --batch",
    )


def _damaged(name: str, got: str, rebuild: str) -> ModelFileError:
    return ModelFileError(
        name, expected="an engine that this TensorRT loads on this GPU", got=got, fix=f"{rebuild}, on this machine"
    )


def _manifest_json(file: Path, sidecar: EngineSidecar | None) -> str | None:
    """Of the sidecar; an engine of trtexec has the manifest of the ONNX file that it was built from."""
    if sidecar is not None:
        return sidecar.manifest.to_json()
    onnx_file = file.with_suffix(".onnx")
    return inspect_onnx(onnx_file).metadata.get(METADATA_KEY) if onnx_file.is_file() else None


def _fixed_thresholds(file: Path, inputs: list[str]) -> dict[str, float]:
    """The thresholds in the ONNX file that trtexec built an engine from: its parser makes constants of the defaults."""
    onnx_file = file.with_suffix(".onnx")
    if not onnx_file.is_file():
        return {}
    defaults = {name: onnx_float(onnx_file, name) for name in THRESHOLD_INPUTS if name not in inputs}
    return {name: value for name, value in defaults.items() if value is not None}


def _spec(trt: Any, engine: Any, tensor: str, name: str, profiles: tuple[Limits, ...]) -> TensorSpec:
    data_type = engine.get_tensor_dtype(tensor)
    dtype = dtype_of(trt, data_type)
    if dtype is None:
        raise _unusual(name, tensor, "numbers that numpy has", data_type)
    layout = engine.get_tensor_format(tensor)
    if layout != trt.TensorFormat.LINEAR:
        raise _unusual(name, tensor, "a linear layout", layout)
    shape = tuple(engine.get_tensor_shape(tensor))
    largest = None
    if any(size < 0 for size in shape) and any(tensor in profile for profile in profiles):
        largest = tuple(max(sizes) for sizes in zip(*(profile[tensor][1] for profile in profiles), strict=True))
    return TensorSpec(
        shape=tuple(None if size < 0 else size for size in shape), dtype=dtype, is_optional=False, largest=largest
    )


def _unusual(name: str, tensor: str, expected: str, got: Any) -> ModelFileError:
    return ModelFileError(
        f"{name}: {tensor}", expected=expected, got=getattr(got, "name", str(got)), fix=f"run: {_REBUILD}"
    )


def num_bytes(shape: Shape, spec: TensorSpec) -> int:
    """That a tensor of this shape takes."""
    return math.prod(shape) * spec.dtype.itemsize
