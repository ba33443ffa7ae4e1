"""From the outputs of a model to detections in pixels of the original images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core import kernels
from boxwright.core.boxes import FloatArray
from boxwright.core.decode import DecodeNmsOutput
from boxwright.core.detections import Detections
from boxwright.core.errors import InputError
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess import ImageTransform
from boxwright.runtimes.model_fit import DETECTION_OUTPUTS, EFFICIENTNMS_OUTPUTS


class Postprocessor:
    """Decodes raw heads on the host, or reads the detections of a graph that decodes by itself."""

    def __init__(self, manifest: Manifest, *, score_threshold: float, iou_threshold: float) -> None:
        """Prepare what every image needs.

        Args:
            manifest: of the model.
            score_threshold: kept are scores above it.
            iou_threshold: of the NMS on the host.
        """
        self._preprocess = manifest.preprocess
        self._is_decoded = manifest.stage == "detections"
        # A graph that takes pixels and decodes has brought its boxes back to them.
        self._is_on_image = self._is_decoded and manifest.input_kind == "pixels"
        self._clips = manifest.decode.clip_to_image
        priors = None if self._is_decoded else manifest.decode.priors()
        self._decode_nms = kernels.PreparedDecodeNms(manifest.decode.attributes(), priors)
        self._has_priors = priors is not None
        self._score_threshold = score_threshold
        self._iou_threshold = iou_threshold

    def __call__(self, outputs: Mapping[str, NDArray[Any]], transforms: Sequence[ImageTransform]) -> list[Detections]:
        """Make the detections of each image.

        Args:
            outputs: of the model by name; the batch may be longer than the transforms.
            transforms: of the images.
        """
        if self._is_decoded:
            decoded = _read_detections(outputs)
            return [self._checked(decoded, row, transform) for row, transform in enumerate(transforms)]
        decoded = self._decode(outputs, transforms)
        return [_unchecked(decoded, row, transform) for row, transform in enumerate(transforms)]

    def _decode(self, outputs: Mapping[str, NDArray[Any]], transforms: Sequence[ImageTransform]) -> DecodeNmsOutput:
        class_logits = _as_float(outputs["class_logits"])
        image_size_hw = _optional_float(outputs, "image_size_hw")
        if self._clips and image_size_hw is None:
            canvas_hw = np.array(self._preprocess.canvas_hw(transforms), dtype=np.float32)
            image_size_hw = np.tile(canvas_hw, (len(class_logits), 1))  # (B, 2)
        return self._decode_nms(
            _as_float(outputs["box_regression"]),
            class_logits,
            score_threshold=self._score_threshold,
            iou_threshold=self._iou_threshold,
            objectness=_optional_float(outputs, "objectness"),
            priors=None if self._has_priors else _optional_float(outputs, "priors"),
            image_size_hw=image_size_hw,
        )

    def _checked(self, decoded: DecodeNmsOutput, row: int, transform: ImageTransform) -> Detections:
        """The detections that an engine gave, which may be anything."""
        count = int(decoded.num_detections[row, 0])
        if count < 0:  # how the CUDA kernel says that a threshold is none
            raise InputError(
                "thresholds", expected="numbers in [0, 1]", got="others, says the model", fix="pass others"
            )
        scores = decoded.scores[row, :count]
        # For an engine that cannot take a threshold; where it can, all of them are above already.
        count = int(np.count_nonzero(scores > np.float32(self._score_threshold)))
        boxes = decoded.boxes[row, :count]
        return Detections(
            boxes_xyxy=boxes.copy() if self._is_on_image else transform.to_original(boxes),
            scores=scores[:count].copy(),
            class_ids=decoded.class_ids[row, :count].copy(),
        )


def _unchecked(decoded: DecodeNmsOutput, row: int, transform: ImageTransform) -> Detections:
    """The detections that our own kernel gave: finite, in order, and in memory of their own."""
    count = int(decoded.num_detections[row, 0])
    return Detections.unchecked(
        transform.to_original(decoded.boxes[row, :count]), decoded.scores[row, :count], decoded.class_ids[row, :count]
    )


def _read_detections(outputs: Mapping[str, NDArray[Any]]) -> DecodeNmsOutput:
    names = DETECTION_OUTPUTS if DETECTION_OUTPUTS[0] in outputs else EFFICIENTNMS_OUTPUTS
    num_detections, boxes, scores, class_ids = (outputs[name] for name in names)
    return DecodeNmsOutput(
        num_detections=num_detections.astype(np.int32, copy=False).reshape(-1, 1),  # (B, 1)
        boxes=_as_float(boxes),
        scores=_as_float(scores),
        class_ids=class_ids.astype(np.int32, copy=False),
    )


def _as_float(array: NDArray[Any]) -> FloatArray:
    """float32, which the outputs of a model in half precision need not be."""
    return array if array.dtype == np.float32 else array.astype(np.float32)


def _optional_float(outputs: Mapping[str, NDArray[Any]], name: str) -> FloatArray | None:
    return _as_float(outputs[name]) if name in outputs else None
