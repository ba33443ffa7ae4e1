"""ONNX Runtime on the CPU, and with onnxruntime-gpu on NVIDIA GPUs, by its CUDA or its TensorRT provider."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import MissingDependencyError, ModelFileError
from boxwright.core.manifest import METADATA_KEY
from boxwright.runtimes.backend import TensorSpec, check_inputs, closed_error, run_failure
from boxwright.runtimes.model_file import inspect_onnx
from boxwright.runtimes.onnxruntime_devices import (
    BoundRuns,
    ProviderChoice,
    check_available,
    check_started,
    choose_provider,
    make_engine_cache,
)
from boxwright.runtimes.synchronous import SynchronousBackend

if TYPE_CHECKING:
    import onnxruntime

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
    """An ONNX file in ONNX Runtime; see `boxwright.runtimes.backend.Backend`."""

    name = "onnxruntime"

    def __init__(self, session: onnxruntime.InferenceSession, choice: ProviderChoice) -> None:
        super().__init__()
        self.device = choice.device
        self.precision = choice.precision
        self._session: onnxruntime.InferenceSession | None = session
        required = {entry.name: _spec(entry, is_optional=False) for entry in session.get_inputs()}
        optional = {entry.name: _spec(entry, is_optional=True) for entry in session.get_overridable_initializers()}
        self.inputs = {**required, **optional}
        self.outputs = {entry.name: _spec(entry, is_optional=False) for entry in session.get_outputs()}
        self.manifest_json: str | None = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        self._output_names = list(self.outputs)
        # The CPU's provider reads the caller's memory; a GPU's inputs have places of their own, which stay.
        self._bound = BoundRuns(session, "cuda", choice.index, self._output_names) if choice.kind != "cpu" else None

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
        choice = choose_provider(str(path), device, precision)
        onnx_file = inspect_onnx(path)  # refuses what must not reach the engine
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingDependencyError("onnxruntime", extra="onnxruntime", needed_for=str(path)) from error
        check_available(str(path), choice, onnxruntime)
        make_engine_cache(str(path), choice)
        if choice.kind != "cpu" and hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA's libraries of NVIDIA's Python packages
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = _SEVERITY_FATAL  # what goes wrong is raised, and is printed once, by us
        try:
            providers = choice.providers(onnx_file.metadata.get(METADATA_KEY))
            session = onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)
        except Exception as error:  # the engine's exceptions have no other base
            raise ModelFileError(
                str(path),
                expected="an ONNX file that ONNX Runtime loads",
                got=_first_line(error),
                fix="export it again, or update onnxruntime",
            ) from error
        check_started(str(path), choice, session.get_providers())
        session.disable_fallback()  # to another provider, after an error
        return cls(session, choice)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the model once; see `Backend.run`."""
        if self._session is None:
            raise closed_error("ONNX Runtime")
        check_inputs(self.inputs, inputs)
        try:
            if self._bound is None:
                arrays = self._session.run(self._output_names, inputs)
            else:
                arrays = self._bound.run(inputs)
        except Exception as error:  # the engine's exceptions have no other base
            raise run_failure("ONNX Runtime", _first_line(error)) from error
        return dict(zip(self._output_names, arrays, strict=True))

    def close(self) -> None:
        """Free the session; see `Backend.close`."""
        super().close()
        self._session = None
        self._bound = None


BACKEND = OnnxRuntimeBackend


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
