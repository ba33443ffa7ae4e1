"""Detectors that take pixels and give boxes by themselves, without a network: OpenCV's cascades and HOG.

A backend moves tensors, so one of these is put behind a backend as a graph that preprocesses and decodes by itself
would be: pixels in, the four outputs of DecodeNMS out. Nothing that uses a `Detector` can tell the difference.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from boxwright.core.detections import Detections
from boxwright.core.manifest import Manifest
from boxwright.runtimes.backend import TensorSpec, check_inputs, closed_error
from boxwright.runtimes.synchronous import SynchronousBackend


class PixelDetector(Protocol):
    """Finds the objects in an image by itself."""

    @property
    def manifest(self) -> Manifest:
        """Of input kind `pixels` and stage `detections`, made up where the file has none."""

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """All objects that it finds, of any score and number.

        Args:
            image: (H, W, 3) uint8 BGR.
        """


class PixelDetectorBackend(SynchronousBackend):
    """A `PixelDetector` as a backend of one image a run; see `boxwright.runtimes.backend.Backend`."""

    device = "cpu"
    precision = "fp32"

    def __init__(self, detector: PixelDetector) -> None:
        super().__init__()
        self._detector: PixelDetector | None = detector
        self._max_detections = detector.manifest.decode.max_detections
        self.manifest_json: str | None = detector.manifest.to_json()
        self.inputs: Mapping[str, TensorSpec] = {
            "images": TensorSpec(shape=(1, None, None, 3), dtype=np.dtype(np.uint8)),
            "score_threshold": TensorSpec(shape=(1,), dtype=np.dtype(np.float32), is_optional=True),
        }
        self.outputs: Mapping[str, TensorSpec] = {
            "num_detections": TensorSpec(shape=(1, 1), dtype=np.dtype(np.int32)),
            "boxes": TensorSpec(shape=(1, None, 4), dtype=np.dtype(np.float32)),
            "scores": TensorSpec(shape=(1, None), dtype=np.dtype(np.float32)),
            "class_ids": TensorSpec(shape=(1, None), dtype=np.dtype(np.int32)),
        }
        self._default_threshold = np.array([detector.manifest.score_threshold], dtype=np.float32)

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the engine; see `Backend.name`."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Detect in one image; see `Backend.run`."""
        if self._detector is None:
            raise closed_error(self.name)
        check_inputs(self.inputs, inputs)
        threshold = float(inputs.get("score_threshold", self._default_threshold)[0])
        found = self._detector.detect(inputs["images"][0]).above(threshold)
        count = min(len(found), self._max_detections)  # they are sorted, so the best stay
        return {
            "num_detections": np.array([[count]], dtype=np.int32),
            "boxes": found.boxes_xyxy[None, :count],  # (1, K, 4)
            "scores": found.scores[None, :count],  # (1, K)
            "class_ids": found.class_ids[None, :count],  # (1, K)
        }

    def close(self) -> None:
        """Let the detector go; see `Backend.close`."""
        super().close()
        self._detector = None
