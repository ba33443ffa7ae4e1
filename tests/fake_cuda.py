"""A cuda-python for tests: numpy plays the memory, and streams do their work when they are waited for, and not before.

Whoever reads a result too early, frees memory that is still needed, uses an address of the wrong side, or forgets to
give something back is found out.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 256
# Where a GPU that shares the CPU's memory sees it.
ALIAS = 1 << 60
STATUS_TEXTS = {
    0: b"no error",
    2: b"out of memory",
    35: b"CUDA driver version is insufficient for CUDA runtime version",
    100: b"no CUDA-capable device is detected",
    700: b"an illegal memory access was encountered",
    901: b"operation failed due to a previous error during capture",
}


class cudaMemcpyKind(enum.IntEnum):
    """As in cuda-python."""

    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    """As in cuda-python."""

    cudaStreamCaptureModeThreadLocal = 1


class FakeCuda:
    """The module `cuda.bindings.runtime` of a machine with one GPU.

    Attributes:
        failing: status that a function gives instead of doing something, by its name.
        live: memory in use, by address: on which side it is, and its bytes.
        calls: names of the functions called.
    """

    cudaMemcpyKind = cudaMemcpyKind
    cudaStreamCaptureMode = cudaStreamCaptureMode
    __spec__ = None

    def __init__(
        self, *, name: str = "NVIDIA L4", capability: tuple[int, int] = (8, 9), is_integrated: bool = False
    ) -> None:
        self.failing: dict[str, int] = {}
        self.live: dict[int, tuple[str, NDArray[np.uint8]]] = {}
        self.calls: list[str] = []
        self.streams: dict[int, list[Callable[[], None]]] = {}
        self.recordings: dict[int, list[Callable[[], None]]] = {}
        self.broken_recordings: set[int] = set()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self._next_handle = 1000
        self._properties = SimpleNamespace(
            name=name.encode() + b"\0\0",
            major=capability[0],
            minor=capability[1],
            integrated=int(is_integrated),
            canMapHostMemory=1,
            totalGlobalMem=1 << 34,
        )

    def assert_all_given_back(self) -> None:
        """Nothing is in use any more."""
        assert not self.live, [side for side, _ in self.live.values()]
        assert not self.streams
        assert not self.graphs

    def view(self, side: str, address: int, num_bytes: int) -> NDArray[np.uint8]:
        """Memory that is in use and reachable from a side, "host" or "device"."""
        if side == "device" and address >= ALIAS:
            address, side = address - ALIAS, "mapped"
        for start, (kind, content) in self.live.items():
            if start <= address and address + num_bytes <= start + len(content):
                assert kind == side or (side, kind) == ("host", "mapped"), f"{kind} memory used as {side} memory"
                return content[address - start : address - start + num_bytes]
        raise AssertionError(f"{num_bytes} bytes at {address:#x} are no {side} memory in use")

    def enqueue(self, stream: int, work: Callable[[], None]) -> None:
        """Put work on a stream, or into what is being recorded of it."""
        (self.recordings if stream in self.recordings else self.streams)[stream].append(work)

    def drain(self, stream: int) -> None:
        """Do what is on a stream."""
        pending, self.streams[stream] = self.streams[stream], []
        for work in pending:
            work()

    # What follows is the interface of cuda-python.

    def cudaGetErrorString(self, status: Any) -> tuple[int, bytes]:
        return 0, STATUS_TEXTS[int(status)]

    def cudaGetLastError(self) -> tuple[int]:
        return (0,)

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return self._status("cudaGetDeviceCount") or (0, 1)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        assert device == 0
        return 0, self._properties

    def cudaSetDevice(self, device: int) -> tuple[int]:
        assert device == 0
        return (0,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._status("cudaMalloc") or (0, self._allocate("device", size))

    def cudaFree(self, address: int) -> tuple[int]:
        assert self.live.pop(address)[0] == "device"
        return (0,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return self._status("cudaHostAlloc") or (0, self._allocate("mapped" if flags & 2 else "host", size))

    def cudaFreeHost(self, address: int) -> tuple[int]:
        assert self.live.pop(address)[0] in ("host", "mapped")
        return (0,)

    def cudaHostGetDevicePointer(self, address: int, flags: int) -> tuple[int, int]:
        assert self.live[address][0] == "mapped"
        return 0, address + ALIAS

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: int) -> tuple[int]:
        self.calls.append("cudaMemcpyAsync")
        to_device = kind == cudaMemcpyKind.cudaMemcpyHostToDevice

        def copy() -> None:
            sides = ("device", "host") if to_device else ("host", "device")
            self.view(sides[0], target, size)[:] = self.view(sides[1], source, size)

        self.enqueue(stream, copy)
        return (0,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return 0, self._new(self.streams)

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        assert not self.streams.pop(stream), "work is left on the stream"
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any, ...]:
        assert stream not in self.recordings
        self.drain(stream)
        return self._status("cudaStreamSynchronize") or (0,)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> tuple[int]:
        self.recordings[stream] = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        recorded = self.recordings.pop(stream)
        if stream in self.broken_recordings:
            self.broken_recordings.discard(stream)
            return 901, None
        return 0, recorded

    def cudaGraphInstantiateWithFlags(self, graph: Any, flags: int) -> tuple[int, int]:
        handle = self._new(self.graphs)
        self.graphs[handle] = graph
        return 0, handle

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:
        return (0,)

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int]:
        self.calls.append("cudaGraphLaunch")
        for work in self.graphs[graph]:
            self.enqueue(stream, work)
        return (0,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[int]:
        del self.graphs[graph]
        return (0,)

    def _status(self, name: str) -> tuple[Any, ...] | None:
        self.calls.append(name)
        return (self.failing[name], None) if name in self.failing else None

    def _allocate(self, side: str, size: int) -> int:
        assert size > 0
        content = np.full(size + ALIGNMENT, 0xA5, dtype=np.uint8)  # whatever was there before
        start = -content.ctypes.data % ALIGNMENT
        content = content[start : start + size]
        self.live[content.ctypes.data] = (side, content)
        return content.ctypes.data

    def _new(self, table: dict[int, Any]) -> int:
        self._next_handle += 1
        table[self._next_handle] = []
        return self._next_handle
