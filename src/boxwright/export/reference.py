"""A foreign file as a detector, so that what was adopted from it can be compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.manifest import Manifest
from boxwright.export.foreign import ForeignFile
from boxwright.export.heads.operations import ArrayOperations, Reading
from boxwright.runtimes.backend import TensorSpec
from boxwright.runtimes.synchronous import SynchronousBackend


class ForeignBackend(SynchronousBackend):
    """The original in ONNX Runtime, its outputs taken apart in numpy.

    Args:
        foreign: the file.
        reading: of its outputs.
        manifest: of the adopted model, at a stage before `detections`.
    """

    name = "original"
    device = "cpu"
    precision = "fp32"
    manifest_json = None

    def __init__(self, foreign: ForeignFile, reading: Reading, manifest: Manifest) -> None:
        super().__init__()
        self._foreign = foreign
        self._reading = reading
        float32, int64 = np.dtype(np.float32), np.dtype(np.int64)
        self.inputs = {"images": TensorSpec(shape=(foreign.batch, 3, *foreign.size_hw), dtype=float32)}
        if manifest.preprocess.pixel_mask:
            self.inputs["pixel_mask"] = TensorSpec(shape=(foreign.batch, *foreign.size_hw), dtype=int64)
        shapes = reading.take_apart(ArrayOperations(), foreign.outputs)
        self.outputs = {
            name: TensorSpec(shape=(foreign.batch, *array.shape[1:]), dtype=float32) for name, array in shapes.items()
        }

    @classmethod
    def open(cls, *_: object, **__: object) -> ForeignBackend:
        """Not used: how to read the outputs must be known."""
        raise TypeError("a ForeignBackend is made with its reading")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the original once; see `Backend.run`."""
        given = self._foreign.run(inputs["images"], inputs.get("pixel_mask"))
        return self._reading.take_apart(ArrayOperations(), given)
