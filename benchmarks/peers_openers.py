"""LibreYOLO and Ultralytics behind the little of `Detector` that `bench` calls; runs in their own environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from boxwright.core.detections import Detections


class PeerDetector:
    """A peer's own predictor, from an image to its boxes; its stages cannot be told apart, so all of it is `infer`."""

    precision = "fp32"

    def __init__(
        self,
        predict: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]],
        *,
        name: str,
        class_names: Sequence[str],
        size_hw: tuple[int, int],
        conf: float,
        iou: float,
    ) -> None:
        self._predict = predict
        self.class_names = tuple(class_names)
        self.score_threshold, self.iou_threshold = conf, iou
        self.backend = SimpleNamespace(name=name, device="cpu")
        # Stage "detections", so that `bench` does not take this for a bare engine.
        self.manifest = SimpleNamespace(
            variant=name,
            stage="detections",
            preprocess=SimpleNamespace(size_hw=size_hw),
            decode=SimpleNamespace(max_detections=300),
        )

    def __call__(self, image: np.ndarray) -> Detections:
        boxes, scores, class_ids = self._predict(image)
        return Detections.sorted(
            np.asarray(boxes, np.float32).reshape(-1, 4),
            np.asarray(scores, np.float32).reshape(-1),
            np.asarray(class_ids).reshape(-1).astype(np.int32),
        )

    def preprocess(self, images: Sequence[np.ndarray]) -> SimpleNamespace:
        return SimpleNamespace(images=images[0], transforms=None)

    def infer(self, batch: SimpleNamespace) -> Detections:
        return self(batch.images)

    def postprocess(self, outputs: Detections, transforms: None) -> list[Detections]:
        return [outputs]

    def close(self) -> None:
        pass


def _limit_threads(num_threads: int) -> None:
    """Give every session the threads that the other candidates have; the peers have no setting for it."""
    original = onnxruntime.InferenceSession

    class LimitedSession(original):  # type: ignore[misc, valid-type]
        def __init__(self, path: Any, sess_options: Any = None, *arguments: Any, **options: Any) -> None:
            sess_options = sess_options or onnxruntime.SessionOptions()
            sess_options.intra_op_num_threads = num_threads
            super().__init__(path, sess_options, *arguments, **options)

    onnxruntime.InferenceSession = LimitedSession


def open_libreyolo(path: str, *, num_threads: int, conf: float, iou: float, **_: Any) -> PeerDetector:
    """LibreYOLO's ONNX backend."""
    _limit_threads(num_threads)
    from libreyolo.backends.onnx import OnnxBackend

    model = OnnxBackend(path, device="cpu")

    def predict(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        boxes = model(image, conf=conf, iou=iou, max_det=300, color_format="bgr").boxes
        return tuple(np.asarray(part) for part in (boxes.xyxy, boxes.conf, boxes.cls))  # type: ignore[return-value]

    names = [model.names[index] for index in sorted(model.names)]
    return PeerDetector(predict, name="libreyolo", class_names=names, size_hw=(416, 416), conf=conf, iou=iou)


def open_ultralytics(path: str, *, num_threads: int, conf: float, iou: float, **_: Any) -> PeerDetector:
    """Ultralytics' predictor on an ONNX file that it exported."""
    _limit_threads(num_threads)
    import torch
    from ultralytics import YOLO

    torch.set_num_threads(max(1, num_threads))
    model = YOLO(path, task="detect")

    def predict(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        boxes = model.predict(image, conf=conf, iou=iou, max_det=300, imgsz=640, device="cpu", verbose=False)[0].boxes
        return boxes.xyxy.numpy(), boxes.conf.numpy(), boxes.cls.numpy()

    predict(np.zeros((640, 640, 3), np.uint8))  # opens the file, which gives the names
    names = [model.names[index] for index in sorted(model.names)]
    return PeerDetector(predict, name="ultralytics", class_names=names, size_hw=(640, 640), conf=conf, iou=iou)
