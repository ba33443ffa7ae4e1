"""CUDA's memory, streams and graphs through NVIDIA's cuda-python, every failure an error of one line.

Addresses and handles are plain whole numbers here, as TensorRT takes them.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from boxwright.core.errors import MissingDependencyError, UnsupportedError

# Of cuda-python since 12.6, and before.
_MODULES = ("cuda.bindings.runtime", "cuda.cudart")
_OUT_OF_MEMORY = 2
_NO_DRIVER = (35, 36)  # older than the CUDA that cuda-python was made for, or none at all
_NO_GPU = 100
_HOST_PORTABLE, _HOST_MAPPED = 1, 2
_STREAM_NON_BLOCKING = 1


@dataclass(frozen=True, kw_only=True)
class CudaDevice:
    """A GPU.

    Attributes:
        index: that CUDA knows it by.
        name: e.g. "NVIDIA L4".
        compute_capability: e.g. "8.9".
        is_integrated: whether it shares the CPU's memory, as on a Jetson.
        memory_bytes: that it has.
    """

    index: int
    name: str
    compute_capability: str
    is_integrated: bool
    memory_bytes: int


class Cuda:
    """CUDA's runtime; `load_cuda` makes one.

    Calls are for the device that this thread has selected.
    """

    def __init__(self, api: Any) -> None:
        self._api = api

    def num_devices(self) -> int:
        """How many GPUs there are.

        Raises:
            UnsupportedError: where there is no driver that works.
        """
        return int(self._call("cudaGetDeviceCount"))

    def device(self, index: int) -> CudaDevice:
        """What a GPU is."""
        properties = self._call("cudaGetDeviceProperties", index)
        name = properties.name
        return CudaDevice(
            index=index,
            name=(name.decode() if isinstance(name, bytes) else str(name)).rstrip("\0"),
            compute_capability=f"{properties.major}.{properties.minor}",
            is_integrated=bool(properties.integrated) and bool(properties.canMapHostMemory),
            memory_bytes=int(properties.totalGlobalMem),
        )

    def select(self, index: int) -> None:
        """Make a GPU this thread's."""
        self._call("cudaSetDevice", index)

    def allocate(self, num_bytes: int) -> int:
        """The address of new memory on the GPU."""
        return int(self._call("cudaMalloc", num_bytes, num_bytes=num_bytes))

    def free(self, address: int) -> None:
        """Give memory of `allocate` back."""
        self._call("cudaFree", address)

    def allocate_host(self, num_bytes: int, *, is_mapped: bool) -> int:
        """The address of new memory of the CPU that is pinned, for copies that the CPU need not wait for.

        Args:
            num_bytes: of it.
            is_mapped: whether the GPU shall reach it too, at `device_address`.
        """
        flags = _HOST_PORTABLE | (_HOST_MAPPED if is_mapped else 0)
        return int(self._call("cudaHostAlloc", num_bytes, flags, num_bytes=num_bytes))

    def free_host(self, address: int) -> None:
        """Give memory of `allocate_host` back."""
        self._call("cudaFreeHost", address)

    def device_address(self, host_address: int) -> int:
        """Where the GPU finds mapped memory of the CPU."""
        return int(self._call("cudaHostGetDevicePointer", host_address, 0))

    def create_stream(self) -> int:
        """The handle of a new stream, which waits for no other."""
        return int(self._call("cudaStreamCreateWithFlags", _STREAM_NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back once its work is done."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        """Wait for all work of a stream; errors of that work show here."""
        self._call("cudaStreamSynchronize", stream)

    def copy_to_device(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        """Put a copy from the CPU's memory to the GPU's on a stream."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source, num_bytes, kind, stream)

    def copy_to_host(self, target: int, source: int, num_bytes: int, stream: int) -> None:
        """Put a copy from the GPU's memory to the CPU's on a stream."""
        kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target, source, num_bytes, kind, stream)

    def begin_capture(self, stream: int) -> None:
        """Record what this thread puts on a stream from now on, instead of doing it."""
        mode = self._api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> int:
        """The handle of what was recorded, ready to be launched.

        Raises:
            UnsupportedError: where something was done that cannot be recorded.
        """
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            return int(self._call("cudaGraphInstantiateWithFlags", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        """Put what was recorded on a stream."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        """Forget what was recorded."""
        self._call("cudaGraphExecDestroy", graph)

    def clear_error(self) -> None:
        """Forget an error that was dealt with; CUDA would report it again at an unrelated place."""
        self._api.cudaGetLastError()

    def _call(self, name: str, *arguments: Any, num_bytes: int = 0) -> Any:
        """What a function of CUDA gives besides its status, which becomes an error where it is one."""
        try:
            status, *results = getattr(self._api, name)(*arguments)
        except RuntimeError as error:  # how cuda-python says that a library of the driver is not there
            raise _no_driver(str(error)) from error
        if int(status) != 0:
            raise self._error(name, status, num_bytes)
        return results[0] if results else None

    def _error(self, name: str, status: Any, num_bytes: int) -> UnsupportedError:
        reason = self._text(status)
        if int(status) in _NO_DRIVER:
            return _no_driver(reason)
        if int(status) == _NO_GPU:
            return UnsupportedError(
                "CUDA", expected="an NVIDIA GPU", got=reason, fix="see what nvidia-smi says, or pass another backend"
            )
        if int(status) == _OUT_OF_MEMORY:
            wanted = f"room for {num_bytes / 2**20:.1f} MiB more" if num_bytes else "enough memory"
            return UnsupportedError(
                "GPU memory",
                expected=wanted,
                got=reason,
                fix="end other programs on this GPU, or export with a smaller --batch",
            )
        return UnsupportedError(
            f"CUDA ({name})", expected="success", got=reason, fix="run it again; if it stays, see what nvidia-smi says"
        )

    def _text(self, status: Any) -> str:
        failed, text = self._api.cudaGetErrorString(status)
        if int(failed) != 0:
            return f"error {int(status)}"
        return text.decode() if isinstance(text, bytes) else str(text)


def load_cuda(needed_for: str) -> Cuda:
    """CUDA on this machine.

    Args:
        needed_for: named in errors.

    Raises:
        MissingDependencyError: where cuda-python is not installed.
        UnsupportedError: where there is no driver or no GPU.
    """
    api = _import_api()
    if api is None:
        raise MissingDependencyError("cuda-bindings", extra="tensorrt", needed_for=needed_for)
    cuda = Cuda(api)
    if cuda.num_devices() == 0:
        raise UnsupportedError(
            needed_for, expected="an NVIDIA GPU", got="none", fix="see what nvidia-smi says, or pass another backend"
        )
    return cuda


def has_cuda_python() -> bool:
    """Whether cuda-python is installed."""
    return _import_api() is not None


def _import_api() -> Any:
    for name in _MODULES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _no_driver(reason: str) -> UnsupportedError:
    return UnsupportedError(
        "CUDA",
        expected="an NVIDIA driver that serves the installed cuda-python",
        got=reason,
        fix="install or update the driver (nvidia-smi shows it), or pass another backend",
    )
