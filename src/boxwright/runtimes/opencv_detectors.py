"""OpenCV's two classical detectors, and what their answers are worth as scores in (0, 1)."""

from __future__ import annotations

import threading

import cv2
import numpy as np
from numpy.typing import NDArray

from boxwright.core.boxes import FloatArray
from boxwright.core.detections import Detections
from boxwright.core.manifest import Manifest

_CASCADE_SCALE_FACTOR = 1.1  # OpenCV's default
# The lowest at which OpenCV groups at all; what it keeps with more is what scores more here.
_CASCADE_MIN_NEIGHBORS = 1
# Puts 3 neighbouring windows, which OpenCV's default drops, at 0.25, and 4, which it keeps, above.
_HALF_SCORE_NEIGHBORS = 9.0


class CascadeDetector:
    """A boosted cascade of Haar, LBP or HOG features over an image pyramid; see `PixelDetector`.

    Raw windows are grouped where they overlap, and the more windows a group has, the surer is the detection. At the
    default threshold of 0.25 the boxes are those of `cv2.CascadeClassifier.detectMultiScale` with its defaults.

    Source: Viola and Jones, Rapid Object Detection using a Boosted Cascade of Simple Features, CVPR 2001.
    """

    def __init__(self, classifier: cv2.CascadeClassifier, manifest: Manifest) -> None:
        self.manifest = manifest
        self._classifier = classifier
        self._lock = threading.Lock()  # the classifier holds the image that it works on

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """Detect in an image; see `PixelDetector.detect`."""
        with self._lock:
            boxes_xywh, num_neighbors = self._classifier.detectMultiScale2(
                image, scaleFactor=_CASCADE_SCALE_FACTOR, minNeighbors=_CASCADE_MIN_NEIGHBORS
            )
        return _detections(boxes_xywh, neighbors_to_scores(np.asarray(num_neighbors, dtype=np.float32)), image)


class HogDetector:
    """Histograms of oriented gradients and a linear SVM over an image pyramid; see `PixelDetector`.

    The boxes are those of `cv2.HOGDescriptor.detectMultiScale` with its defaults, so there are none on the wrong side
    of the SVM's plane and all scores are above 0.5.

    Source: Dalal and Triggs, Histograms of Oriented Gradients for Human Detection, CVPR 2005.
    """

    def __init__(self, descriptor: cv2.HOGDescriptor, manifest: Manifest) -> None:
        self.manifest = manifest
        self._descriptor = descriptor

    def detect(self, image: NDArray[np.uint8]) -> Detections:
        """Detect in an image; see `PixelDetector.detect`."""
        window_w, window_h = self._descriptor.winSize
        if image.shape[0] < window_h or image.shape[1] < window_w:
            return Detections.empty()  # no window fits
        boxes_xywh, margins = self._descriptor.detectMultiScale(image)
        return _detections(boxes_xywh, margins_to_scores(np.asarray(margins, dtype=np.float32).reshape(-1)), image)


def neighbors_to_scores(num_neighbors: FloatArray) -> FloatArray:
    """Scores n / (n + 9) of groups of n windows."""
    scores: FloatArray = num_neighbors / (num_neighbors + np.float32(_HALF_SCORE_NEIGHBORS))
    return scores


def margins_to_scores(margins: FloatArray) -> FloatArray:
    """Scores 1 / (1 + e^-m) of an SVM's margins m; an order, and no calibrated probability."""
    scores: FloatArray = (1.0 / (1.0 + np.exp(-margins))).astype(np.float32)
    return scores


def _detections(boxes_xywh: object, scores: FloatArray, image: NDArray[np.uint8]) -> Detections:
    boxes = np.asarray(boxes_xywh, dtype=np.float32).reshape(-1, 4)  # OpenCV gives an empty tuple for none
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    # A window of a coarse level can be rounded to a pixel beyond the image.
    height, width = image.shape[:2]
    limits = np.array([width, height, width, height], dtype=np.float32)
    clipped: FloatArray = np.minimum(np.maximum(corners, np.float32(0)), limits)
    return Detections.sorted(clipped, scores, np.zeros(len(clipped), dtype=np.int32))
