"""Memory that the CPU and the GPU exchange tensors through.

Where the two share their memory, as on a Jetson, one piece serves both and nothing is copied. Elsewhere a tensor has a
pinned place on the CPU's side, from which copies go on while the CPU does something else, and one on the GPU's.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import BoxwrightError
from boxwright.runtimes.cuda_runtime import Cuda

_LEAST_BYTES = 1


class PinnedMemory:
    """A piece of pinned memory that lives as long as somebody holds it, an array over it included.

    Attributes:
        address: on the CPU's side.
        device_address: where the GPU reaches it; None where it is not shared.
        num_bytes: of it.
    """

    def __init__(self, cuda: Cuda, num_bytes: int, *, is_shared: bool) -> None:
        self.num_bytes = max(num_bytes, _LEAST_BYTES)
        self.address = 0
        self._cuda = cuda
        self.address = cuda.allocate_host(self.num_bytes, is_mapped=is_shared)
        self.device_address = cuda.device_address(self.address) if is_shared else None

    def __del__(self) -> None:
        if self.address:
            _give_back(self._cuda.free_host, self.address)

    def as_array(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array at the beginning of this memory, which it keeps alive."""
        assert math.prod(shape) * dtype.itemsize <= self.num_bytes
        return np.asarray(_Span(self, shape, dtype))


class _Span:
    """What an array over pinned memory is made of.

    It is no array itself: numpy lets views of an array hold that array only where its own base is none.
    """

    def __init__(self, memory: PinnedMemory, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.memory = memory
        self.__array_interface__ = {
            "data": (memory.address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }


class DeviceMemory:
    """A piece of the GPU's memory, given back with the object."""

    def __init__(self, cuda: Cuda, num_bytes: int) -> None:
        self.num_bytes = max(num_bytes, _LEAST_BYTES)
        self.address = 0
        self._cuda = cuda
        self.address = cuda.allocate(self.num_bytes)

    def __del__(self) -> None:
        if self.address:
            _give_back(self._cuda.free, self.address)


def _give_back(free: Callable[[int], None], address: int) -> None:
    """Free memory, unless the process ends, which gives everything back.

    After an error of the GPU, which was raised where it happened, CUDA refuses this too, and nothing can be done.
    """
    if not sys.is_finalizing():
        with contextlib.suppress(BoxwrightError):
            free(address)


def pinned_array(cuda: Cuda, shape: tuple[int, ...], dtype: np.dtype[Any], *, is_shared: bool) -> NDArray[Any]:
    """An array in pinned memory of its own, for `find_pinned` to find again."""
    return PinnedMemory(cuda, math.prod(shape) * dtype.itemsize, is_shared=is_shared).as_array(shape, dtype)


def find_pinned(array: NDArray[Any]) -> PinnedMemory | None:
    """The pinned memory that an array lies in side by side, None where it lies elsewhere."""
    if not array.flags.c_contiguous:
        return None
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    return owner.memory if isinstance(owner, _Span) else None


class TensorMemory:
    """The places of one tensor; they grow when a larger one comes.

    Attributes:
        is_shared: whether one place serves both sides.
    """

    def __init__(self, cuda: Cuda, *, is_shared: bool) -> None:
        self.is_shared = is_shared
        self._cuda = cuda
        self._host: PinnedMemory | None = None
        self._device: DeviceMemory | None = None

    def reserve_host(self, num_bytes: int) -> PinnedMemory:
        """The place on the CPU's side, of at least this size; no work may be under way on the old one."""
        if self._host is None or self._host.num_bytes < num_bytes:
            self._host = None  # first, so that the two need not fit side by side
            self._host = PinnedMemory(self._cuda, num_bytes, is_shared=self.is_shared)
        return self._host

    def reserve_device(self, num_bytes: int) -> int:
        """The address on the GPU's side of a place of at least this size; no work may be under way on the old one."""
        if self.is_shared:
            address = self.reserve_host(num_bytes).device_address
            assert address is not None
            return address
        if self._device is None or self._device.num_bytes < num_bytes:
            self._device = None
            self._device = DeviceMemory(self._cuda, num_bytes)
        return self._device.address


def copy_into(memory: PinnedMemory, array: NDArray[Any]) -> None:
    """Copy an array to the beginning of pinned memory."""
    memory.as_array(array.shape, array.dtype)[...] = array


def copy_out_of(memory: PinnedMemory, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A copy of the array at the beginning of pinned memory, in memory that nobody else writes."""
    copied: NDArray[Any] = memory.as_array(shape, dtype).copy()
    return copied
