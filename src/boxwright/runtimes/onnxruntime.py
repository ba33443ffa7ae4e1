"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import MissingDependencyError, ModelFileError, UnsupportedError
from boxwright.core.manifest import METADATA_KEY
from boxwright.runtimes.backend import TensorSpec, check_inputs, closed_error, run_failure
from boxwright.runtimes.model_file import inspect_onnx
from boxwright.runtimes.synchronous import SynchronousBackend

if TYPE_CHECKING:
    import onnxruntime  # type: ignore[import-untyped]

SUFFIXES = (".onnx",)
_SEVERITY_FATAL = 4
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}


def available() -> str | None:
    """None where the engine is installed, else what is missing."""
    return None if importlib.util.find_spec("onnxruntime") is not None else "the package onnxruntime is not installed"


class OnnxRuntimeBackend(SynchronousBackend):
    """An ONNX file in ONNX Runtime's CPU provider; see `boxwright.runtimes.backend.Backend`."""

    name = "onnxruntime"
    device = "cpu"
    precision = "fp32"

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        super().__init__()
        self._session: onnxruntime.InferenceSession | None = session
        required = {entry.name: _spec(entry, is_optional=False) for entry in session.get_inputs()}
        optional = {entry.name: _spec(entry, is_optional=True) for entry in session.get_overridable_initializers()}
        self.inputs = {**required, **optional}
        self.outputs = {entry.name: _spec(entry, is_optional=False) for entry in session.get_outputs()}
        self.manifest_json: str | None = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        self._output_names = list(self.outputs)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        precision: str | None = None,
        num_threads: int = 0,
    ) -> OnnxRuntimeBackend:
        """Open an ONNX file; see `Backend.open`."""
        _check_wishes(str(path), device, precision)
        inspect_onnx(path)  # refuses what must not reach the engine
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError("onnxruntime", extra="onnxruntime", needed_for=str(path)) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = _SEVERITY_FATAL  # what goes wrong is raised, and is printed once, by us
        try:
            session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the engine's exceptions have no other base
            raise ModelFileError(
                str(path),
                expected="an ONNX file that ONNX Runtime loads",
                got=_first_line(error),
                fix="export it again, or update onnxruntime",
            ) from error
        return cls(session)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once; see `Backend.run`."""
        if self._session is None:
            raise closed_error("ONNX Runtime")
        check_inputs(self.inputs, inputs)
        try:
            arrays = self._session.run(self._output_names, inputs)
        except Exception as error:  # the engine's exceptions have no other base
            raise run_failure("ONNX Runtime", _first_line(error)) from error
        return dict(zip(self._output_names, arrays, strict=True))

    def close(self) -> None:
        """Free the session; see `Backend.close`."""
        super().close()
        self._session = None


BACKEND = OnnxRuntimeBackend


def _check_wishes(path: str, device: str, precision: str | None) -> None:
    if device != "cpu":
        raise UnsupportedError(
            path, expected="the device cpu with ONNX Runtime", got=repr(device), fix="pass cpu, or another backend"
        )
    if precision not in (None, "fp32"):
        raise UnsupportedError(
            path,
            expected="the precision fp32 with ONNX Runtime on a CPU",
            got=repr(precision),
            fix="leave the precision out, or run the model with openvino",
        )


def _spec(entry: onnxruntime.NodeArg, *, is_optional: bool) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else None for size in entry.shape)
    if entry.type not in _DTYPES:
        raise ModelFileError(
            entry.name, expected="a tensor of numbers", got=entry.type, fix="export a model with tensors alone"
        )
    return TensorSpec(shape=shape, dtype=np.dtype(_DTYPES[entry.type]), is_optional=is_optional)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
