"""OpenVINO on CPUs and Intel GPUs: its own IR, or an ONNX file."""

from __future__ import annotations

import functools
import importlib.util
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import MissingDependencyError, ModelFileError, UnsupportedError
from boxwright.core.manifest import METADATA_KEY
from boxwright.runtimes.backend import TensorSpec, check_inputs, closed_error, run_failure
from boxwright.runtimes.model_file import inspect_onnx, locate_model_file, onnx_without_initializers
from boxwright.runtimes.openvino_integers import check_signed_integers
from boxwright.runtimes.openvino_plugin import find_openvino_plugin, mentions_decode_nms
from boxwright.runtimes.plugin_build import BUILD_COMMAND

if TYPE_CHECKING:
    import openvino

SUFFIXES = (".xml", ".onnx")
XML_ROOT = "net"
# OpenVINO would choose the precision by the CPU; here it is what was asked for.
_PRECISION_HINTS = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
_HEAD_BYTES = 4096
_PLUGIN_NODE = "boxwright.DecodeNMS"
_ADVICE = "To facilitate the conversion"  # begins a line that leads to a web page


def available() -> str | None:
    """None where the engine is installed, else what is missing."""
    return None if importlib.util.find_spec("openvino") is not None else "the package openvino is not installed"


class _Run(NamedTuple):
    """A request, and the arrays that it reads: the engine does not keep them alive by itself."""

    request: openvino.InferRequest
    arrays: dict[str, NDArray[Any]]


class OpenVinoBackend:
    """A model compiled by OpenVINO for the latency of single runs; see `boxwright.runtimes.backend.Backend`."""

    name = "openvino"

    def __init__(
        self, compiled: openvino.CompiledModel, *, device: str, precision: str, manifest_json: str | None
    ) -> None:
        self.device = device
        self.precision = precision
        self.manifest_json = manifest_json
        self.inputs = {port.get_any_name(): _spec(port) for port in compiled.inputs}
        self._output_names = [port.get_any_name() for port in compiled.outputs]
        self.outputs = dict(zip(self._output_names, map(_spec, compiled.outputs), strict=True))
        self._compiled: openvino.CompiledModel | None = compiled
        self._idle: list[openvino.InferRequest] = []

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        precision: str | None = None,
        num_threads: int = 0,
    ) -> OpenVinoBackend:
        """Open an IR, the folder that holds one, or an ONNX file; see `Backend.open`."""
        file = locate_model_file(path)
        core = _core(str(path))
        engine_device = _engine_device(core, str(path), device)
        precision = precision or "fp32"
        if precision not in _PRECISION_HINTS:
            raise UnsupportedError(
                str(path),
                expected="one of the precisions " + ", ".join(_PRECISION_HINTS),
                got=repr(precision),
                fix="pass one of these",
            )
        if mentions_decode_nms(file):
            load_plugin_if_built(core)
        model, manifest_json = _read_onnx(core, file) if file.suffix.lower() == ".onnx" else _read_ir(core, file)
        check_signed_integers(model, core, engine_device, str(path))
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISION_HINTS[precision],
        }
        if num_threads > 0 and engine_device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = num_threads
        try:
            compiled = core.compile_model(model, engine_device, settings)
        except RuntimeError as error:
            raise ModelFileError(
                str(path),
                expected=f"a model that OpenVINO compiles for {engine_device}",
                got=_last_line(error),
                fix="export it again, or update openvino",
            ) from error
        _check_precision(compiled, str(path), precision)
        return cls(compiled, device=device, precision=precision, manifest_json=manifest_json)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once; see `Backend.run`."""
        run = self._prepared(inputs)
        try:
            run.request.infer()
        except RuntimeError as error:
            raise run_failure("OpenVINO", _last_line(error)) from error
        return self._outputs_of(run)

    def submit(self, inputs: Mapping[str, NDArray[Any]]) -> object:
        """Start a run; see `Backend.submit`."""
        run = self._prepared(inputs)
        run.request.start_async()
        return run

    def wait(self, ticket: Any) -> dict[str, NDArray[Any]]:
        """The outputs of a run; see `Backend.wait`."""
        assert isinstance(ticket, _Run)
        try:
            ticket.request.wait()
        except RuntimeError as error:
            raise run_failure("OpenVINO", _last_line(error)) from error
        return self._outputs_of(ticket)

    def close(self) -> None:
        """Free the compiled model; see `Backend.close`."""
        self._idle.clear()
        self._compiled = None

    def __enter__(self) -> OpenVinoBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _prepared(self, inputs: Mapping[str, NDArray[Any]]) -> _Run:
        """An idle request whose inputs lie in the memory of the caller's arrays."""
        import openvino

        if self._compiled is None:
            raise closed_error("OpenVINO")
        check_inputs(self.inputs, inputs)
        # Unlike ascontiguousarray this leaves a scalar a scalar.
        arrays = {name: np.asarray(array, order="C") for name, array in inputs.items()}
        request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        for name, array in arrays.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        return _Run(request, arrays)

    def _outputs_of(self, run: _Run) -> dict[str, NDArray[Any]]:
        # Copied, since the request writes its next results to the same memory.
        tensors = (run.request.get_output_tensor(index).data for index in range(len(self._output_names)))
        outputs = {name: np.array(data) for name, data in zip(self._output_names, tensors, strict=True)}
        self._idle.append(run.request)
        return outputs


BACKEND = OpenVinoBackend


_plugins_of: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()


@functools.lru_cache(maxsize=1)
def _shared_core() -> openvino.Core:
    """One for the process: each costs tens of milliseconds and knows nothing of models."""
    import openvino

    return openvino.Core()


def load_plugin_if_built(core: openvino.Core) -> None:
    """Teach an engine the node boxwright.DecodeNMS, where this machine has the extension; once for each engine."""
    library = find_openvino_plugin()
    if library is None or str(library) in _plugins_of.setdefault(core, set()):
        return
    core.add_extension(str(library))
    _plugins_of[core].add(str(library))


def _core(path: str) -> openvino.Core:
    try:
        return _shared_core()
    except ImportError as error:
        raise MissingDependencyError("openvino", extra="openvino", needed_for=path) from error


def _engine_device(core: openvino.Core, path: str, device: str) -> str:
    """OpenVINO's name of a device: CPU, GPU, or GPU.1 for "gpu:1"."""
    name = device.upper().replace(":", ".")
    if name not in core.available_devices:
        known = ", ".join(entry.lower().replace(".", ":") for entry in core.available_devices)
        raise UnsupportedError(
            path, expected=f"a device that OpenVINO has here ({known})", got=repr(device), fix="pass one of these"
        )
    return name


def _read_ir(core: openvino.Core, path: Path) -> tuple[openvino.Model, str | None]:
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if b"<net" not in head:
        raise ModelFileError(
            str(path), expected="an OpenVINO IR (root element <net>)", got="another XML file", fix="check the path"
        )
    if not path.with_suffix(".bin").is_file():
        raise ModelFileError(
            str(path), expected=f"its weights {path.stem}.bin beside it", got="no such file", fix="copy that file too"
        )
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    manifest = model.get_rt_info(METADATA_KEY).astype(str) if model.has_rt_info(METADATA_KEY) else None
    return model, manifest


def _read_onnx(core: openvino.Core, path: Path) -> tuple[openvino.Model, str | None]:
    """The model, its defaulted thresholds made plain inputs: OpenVINO would make them constants for good.

    A file with external data is read as it is, since those are found through its own place alone; its thresholds stay
    what they are.
    """
    onnx_file = inspect_onnx(path)
    try:
        if onnx_file.defaulted_input_names and not onnx_file.external_paths:
            thresholds = tuple(name for name in onnx_file.defaulted_input_names if name.endswith("_threshold"))
            model = core.read_model(onnx_without_initializers(path, thresholds))
        else:
            model = core.read_model(path)
    except RuntimeError as error:
        raise _unreadable(path, error) from error
    return model, onnx_file.metadata.get(METADATA_KEY)


def _unreadable(path: Path, error: RuntimeError) -> ModelFileError | UnsupportedError:
    reason = _last_line(error)
    if _PLUGIN_NODE in reason and find_openvino_plugin() is None:
        return UnsupportedError(
            str(path),
            expected="a graph of operators that OpenVINO knows",
            got=f"one with the node {_PLUGIN_NODE}",
            fix=f"run: {BUILD_COMMAND}, or export it with --nms graph",
        )
    return ModelFileError(str(path), expected="a file that OpenVINO reads", got=reason, fix="export it again")


def _check_precision(compiled: openvino.CompiledModel, path: str, precision: str) -> None:
    """Refuse what the device replaced by another precision without a word."""
    hint = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    used = {name: precision for precision, name in _PRECISION_HINTS.items()}.get(hint, hint)
    if used != precision:
        raise UnsupportedError(
            path,
            expected=f"a precision that OpenVINO has on this device ({used}, for one)",
            got=repr(precision),
            fix=f"pass {used}, or leave the precision out",
        )


def _spec(port: openvino.ConstOutput) -> TensorSpec:
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return TensorSpec(shape=shape, dtype=np.dtype(port.get_element_type().to_dtype()))


def _last_line(error: Exception) -> str:
    """The line of OpenVINO's message that says what is wrong; those before it say where in its sources."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(_ADVICE)]
    for line in telling:
        # Our own extension says it best; what follows says only that the node was not converted.
        if "DecodeNMS" in line and ": expected " in line:
            return line[line.index("DecodeNMS") :]
    return telling[-1] if telling else type(error).__name__
