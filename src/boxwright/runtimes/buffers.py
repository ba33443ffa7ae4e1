"""Arrays for the network's input that are used again, so that a steady state allocates nothing."""

from __future__ import annotations

import sys
import threading

import numpy as np

from boxwright.core.boxes import FloatArray

# A caller who keeps every batch must not make the pool keep them too.
_MOST_BUFFERS = 4


class BufferPool:
    """Gives out float32 arrays, and gives one out again only when nobody holds it or a view of it any more.

    So a result of an earlier call is never overwritten while somebody can still look at it.
    """

    def __init__(self) -> None:
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
            buffer = np.empty(shape, dtype=np.float32)
            self._buffers = [*self._buffers[-(_MOST_BUFFERS - 1) :], buffer]
            return buffer
