"""The source of an export as a detector, so that the artifact can be compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from boxwright.core.manifest import Manifest
from boxwright.runtimes.backend import TensorSpec
from boxwright.runtimes.synchronous import SynchronousBackend


class ForeignBackend(SynchronousBackend):
    """A foreign ONNX file as it is, in ONNX Runtime, its outputs taken apart in numpy.

    Shares nothing with the graph surgery that it is the reference of.

    Args:
        path: of the foreign file.
        head: one of the heads of `adopt`.
        manifest: of the adopted model, at a stage before `detections`.
    """

    name = "original"
    device = "cpu"
    precision = "fp32"
    manifest_json = None

    def __init__(self, path: Path, head: str, manifest: Manifest) -> None:
        super().__init__()
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._head = head
        size_hw = manifest.preprocess.size_hw
        assert size_hw is not None
        self._size_hw = size_hw
        batch = self._session.get_inputs()[0].shape[0]
        float32 = np.dtype(np.float32)
        shape = (batch if isinstance(batch, int) else None, 3, *size_hw)
        self.inputs = {"images": TensorSpec(shape=shape, dtype=float32)}
        self.outputs = {
            "box_regression": TensorSpec(shape=(None, None, 4), dtype=float32),
            "class_logits": TensorSpec(shape=(None, None, manifest.decode.num_logits), dtype=float32),
        }
        if manifest.decode.has_objectness:
            self.outputs["objectness"] = TensorSpec(shape=(None, None), dtype=float32)

    @classmethod
    def open(cls, *_: object, **__: object) -> ForeignBackend:
        """Not used: the head must be known."""
        raise TypeError("a ForeignBackend is made with its head")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the original once; see `Backend.run`."""
        name = self._session.get_inputs()[0].name
        given = dict(
            zip(
                (output.name for output in self._session.get_outputs()),
                self._session.run(None, {name: inputs["images"]}),
                strict=True,
            )
        )
        return _take_apart(self._head, given, self._size_hw)


def _take_apart(head: str, given: dict[str, NDArray[Any]], size_hw: tuple[int, int]) -> dict[str, NDArray[Any]]:
    if head in ("ssd", "detr"):
        boxes = next((array for name, array in given.items() if "box" in name), None)
        if boxes is None:
            boxes = next(array for array in given.values() if array.shape[-1] == 4)
        classes = next(array for array in given.values() if array is not boxes)
        scale = np.array([size_hw[1], size_hw[0]] * 2, dtype=np.float32) if head == "ssd" else np.float32(1)
        return {"box_regression": boxes * scale, "class_logits": classes}
    rows = next(iter(given.values()))
    if head == "yolov8":
        rows = np.ascontiguousarray(rows.transpose(0, 2, 1))
        return {"box_regression": rows[..., :4].copy(), "class_logits": rows[..., 4:].copy()}
    return {
        "box_regression": rows[..., :4].copy(),
        "class_logits": rows[..., 5:].copy(),
        "objectness": rows[..., 4].copy(),
    }
