"""ONNX Runtime's execution providers as devices: `cpu`, `cuda` and `tensorrt`, the latter two with a GPU's number.

ONNX Runtime leaves out a provider that it cannot start and runs on the CPU without a word; here that is an error.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import OutputError, UnsupportedError
from boxwright.core.files import cache_dir
from boxwright.runtimes.device_names import parse_device

if TYPE_CHECKING:
    import onnxruntime

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PRECISIONS = {"cpu": ("fp32",), "cuda": ("fp32",), "tensorrt": ("fp32", "fp16")}


@dataclass(frozen=True, kw_only=True)
class ProviderChoice:
    """What a device means.

    Attributes:
        device: "cpu", "cuda:0", "tensorrt:1" ...
        kind: "cpu", "cuda" or "tensorrt".
        index: of the GPU.
        precision: of the arithmetic.
    """

    device: str
    kind: str
    index: int
    precision: str

    @property
    def provider(self) -> str:
        """That runs what it can; the others run the rest."""
        return {"cpu": _CPU, "cuda": _CUDA, "tensorrt": _TENSORRT}[self.kind]

    def providers(self, manifest_json: str | None) -> list[tuple[str, dict[str, Any]]]:
        """For `InferenceSession`, with their options."""
        if self.kind == "cpu":
            return [(_CPU, {})]
        # TF32 would round what was asked for in float32 to ten bits.
        cuda = (_CUDA, {"device_id": self.index, "use_tf32": 0})
        if self.kind == "cuda":
            return [cuda, (_CPU, {})]
        cache = str(_engine_cache())
        tensorrt = {
            "device_id": self.index,
            "trt_fp16_enable": self.precision == "fp16",
            "trt_int8_enable": _is_quantized(manifest_json),
            "trt_engine_cache_enable": True,  # building takes minutes
            "trt_engine_cache_path": cache,
            "trt_timing_cache_enable": True,
            "trt_timing_cache_path": cache,
        }
        return [(_TENSORRT, tensorrt), cuda, (_CPU, {})]


def choose_provider(path: str, device: str, precision: str | None) -> ProviderChoice:
    """What a device and a precision mean.

    Raises:
        UnsupportedError: where ONNX Runtime has no such device, or not this precision on it.
    """
    name = parse_device(device, _PRECISIONS)
    if name is None:
        raise UnsupportedError(
            path,
            expected="one of the devices cpu, cuda and tensorrt (cuda:1 and so on for further GPUs) with ONNX Runtime",
            got=repr(device),
            fix="pass one of these, or another backend",
        )
    allowed = _PRECISIONS[name.kind]
    if precision not in (None, *allowed):
        raise UnsupportedError(
            path,
            expected=f"the precision {' or '.join(allowed)} with ONNX Runtime on the device {name.kind}",
            got=repr(precision),
            fix="leave the precision out, or run the model with another backend or device",
        )
    return ProviderChoice(device=str(name), kind=name.kind, index=name.index, precision=precision or "fp32")


def check_available(path: str, choice: ProviderChoice, module: Any) -> None:
    """Raise `UnsupportedError` where the installed package lacks the provider."""
    available = module.get_available_providers()
    if choice.provider not in available:
        raise UnsupportedError(
            path,
            expected=f"an onnxruntime with {choice.provider} for the device {choice.kind}",
            got=f"onnxruntime {module.__version__} with {', '.join(available)} alone",
            fix="run: pip uninstall -y onnxruntime && pip install onnxruntime-gpu (on a Jetson NVIDIA's own package)",
        )


def make_engine_cache(path: str, choice: ProviderChoice) -> None:
    """Make the folder that ONNX Runtime keeps TensorRT's engines in.

    Raises:
        OutputError: where it cannot be made.
    """
    if choice.kind != "tensorrt":
        return
    try:
        _engine_cache().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            str(_engine_cache()),
            expected=f"a folder for the engines that TensorRT builds of {path}",
            got=error.strerror or str(error),
            fix="set XDG_CACHE_HOME to a folder that can be written",
        ) from error


def _engine_cache() -> Path:
    return cache_dir() / "onnxruntime-tensorrt"


def check_started(path: str, choice: ProviderChoice, providers: Sequence[str]) -> None:
    """Raise `UnsupportedError` where a session does not use the provider that was asked for."""
    if choice.provider not in providers:
        raise UnsupportedError(
            path,
            expected=f"{choice.provider} to start on GPU {choice.index}",
            got=f"a session on {', '.join(providers)}",
            fix="see that nvidia-smi shows the GPU, and install the CUDA, cuDNN and TensorRT that this onnxruntime-gpu "
            "wants (pip install 'onnxruntime-gpu[cuda,cudnn]')",
        )


class BoundRuns:
    """Runs of a session whose inputs have their places in a device's memory, for as many threads as there are."""

    def __init__(self, session: onnxruntime.InferenceSession, kind: str, index: int, output_names: list[str]) -> None:
        self._session = session
        self._kind, self._index = kind, index
        self._output_names = output_names
        self._lock = threading.Lock()
        self._idle: list[_BoundRun] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs, in the order of their names, in memory of their own."""
        with self._lock:
            bound = self._idle.pop() if self._idle else _BoundRun(self._session, self._kind, self._index)
        arrays = bound.run(inputs, self._output_names)
        with self._lock:  # not where it failed
            self._idle.append(bound)
        return arrays


class _BoundRun:
    """One run at a time."""

    def __init__(self, session: onnxruntime.InferenceSession, kind: str, index: int) -> None:
        self._session = session
        self._place = (kind, index)
        self._binding = session.io_binding()
        self._values: dict[str, onnxruntime.OrtValue] = {}

    def run(self, inputs: Mapping[str, NDArray[Any]], output_names: list[str]) -> list[NDArray[Any]]:
        if inputs.keys() != self._values.keys():
            self._binding.clear_binding_inputs()
            self._values.clear()
        for name, array in inputs.items():
            self._set_input(name, np.asarray(array, order="C"))
        # Bound anew for each run, since ONNX Runtime would keep the sizes of the run before.
        self._binding.clear_binding_outputs()
        for name in output_names:
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding)
        arrays: list[NDArray[Any]] = self._binding.copy_outputs_to_cpu()
        return arrays

    def _set_input(self, name: str, array: NDArray[Any]) -> None:
        import onnxruntime

        value = self._values.get(name)
        if value is not None and tuple(value.shape()) == array.shape:
            value.update_inplace(array)
            return
        self._values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array, *self._place)
        self._binding.bind_ortvalue_input(name, self._values[name])


def _is_quantized(manifest_json: str | None) -> bool:
    """Whether a manifest, which may be anything, says that the graph has Q/DQ nodes."""
    if manifest_json is None:
        return False
    try:
        data = json.loads(manifest_json)
    except ValueError:  # whoever reads it next will say so
        return False
    return isinstance(data, dict) and data.get("precision") == "int8"
