"""Arrays for the network's input that are used again, so that a steady state allocates nothing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray

# A caller who keeps every batch must not make the pool keep them too.
_MOST_BUFFERS = 4
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]


class BufferPool:
    """Gives out float32 arrays, and gives one out again only when nobody holds it or a view of it any more.

    So a result of an earlier call is never overwritten while somebody can still look at it.
    """

    def __init__(self, allocate: Allocate | None = None) -> None:
        """Start empty.

        Args:
            allocate: of an engine that has memory which it reads from faster; numpy's where None.
        """
        self._allocate: Allocate = allocate or np.empty
        self._buffers: list[FloatArray] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> FloatArray:
        """An array of that shape with arbitrary content, C-contiguous."""
        with self._lock:
            for index in range(len(self._buffers)):
                # Two references mean that nobody else holds it: the list's, and the argument of getrefcount. A view
                # holds its base, so views count.
                if self._buffers[index].shape == shape and sys.getrefcount(self._buffers[index]) == 2:
                    return self._buffers[index]
            buffer = self._allocate(shape, np.dtype(np.float32))
            self._buffers = [*self._buffers[-(_MOST_BUFFERS - 1) :], buffer]
            return buffer
