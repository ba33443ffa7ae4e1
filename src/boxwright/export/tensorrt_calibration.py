"""Images for TensorRT's own calibrator (up to version 10), and the cache of the ranges that it finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import UnsupportedError
from boxwright.core.files import atomic_file
from boxwright.core.manifest import Manifest
from boxwright.export.decode_nms.function import THRESHOLD_NAMES
from boxwright.runtimes.cuda_runtime import Cuda

_INPUT_NAME = "images"


class ImageBatches:
    """Preprocessed images in the GPU's memory, a batch at a time; the thresholds beside them."""

    def __init__(
        self,
        images: Sequence[NDArray[np.uint8]],
        manifest: Manifest,
        *,
        batch_size: int,
        cuda: Cuda | None,
        cache: Path | None,
    ) -> None:
        """Take what the calibrator needs.

        Args:
            images: uint8 BGR; the last ones are left out where they do not fill a batch.
            manifest: that says how they become the input.
            batch_size: images of each batch.
            cuda: to reach the GPU; None where a cache makes images needless.
            cache: file of ranges.
        """
        self._images = images
        self._manifest = manifest
        self._batch_size = batch_size
        self._cuda = cuda
        self._cache = cache
        self._next = 0
        self._addresses: dict[str, int] = {}

    @property
    def batch_size(self) -> int:
        return self._batch_size

    def next_addresses(self, names: Sequence[str]) -> list[int] | None:
        """Copy the next batch, and say where each input lies; None after the last."""
        chosen = self._images[self._next : self._next + self._batch_size]
        if len(chosen) < self._batch_size or self._cuda is None:
            return None
        self._next += self._batch_size
        tensors = [self._manifest.preprocess.apply(image)[0] for image in chosen]
        thresholds = (self._manifest.score_threshold, self._manifest.iou_threshold)
        arrays = {
            name: np.array(value, dtype=np.float32) for name, value in zip(THRESHOLD_NAMES, thresholds, strict=True)
        }
        arrays[_INPUT_NAME] = np.stack(tensors)
        for name in names:
            if name not in arrays:
                raise UnsupportedError(
                    f"input {name}",
                    expected="images or thresholds, to calibrate with",
                    got=name,
                    fix="use Q/DQ instead",
                )
            self._copy(name, np.ascontiguousarray(arrays[name]))
        return [self._addresses[name] for name in names]

    def read_cache(self) -> bytes | None:
        """Ranges found before."""
        return self._cache.read_bytes() if self._cache is not None and self._cache.is_file() else None

    def write_cache(self, content: bytes) -> None:
        """Keep ranges for another build."""
        if self._cache is not None:
            with atomic_file(self._cache) as temporary:
                temporary.write_bytes(content)

    def close(self) -> None:
        """Free the GPU's memory."""
        for address in self._addresses.values():
            assert self._cuda is not None
            self._cuda.free(address)
        self._addresses.clear()

    def _copy(self, name: str, array: NDArray[np.float32]) -> None:
        cuda = self._cuda
        assert cuda is not None
        if name not in self._addresses:
            self._addresses[name] = cuda.allocate(array.nbytes)
        stream = cuda.create_stream()
        try:
            cuda.copy_to_device(self._addresses[name], array.ctypes.data, array.nbytes, stream)
            cuda.synchronize(stream)
        finally:
            cuda.destroy_stream(stream)
