"""The description that travels with a model file, so that the file alone is enough to run it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from boxwright.core.codec import from_jsonable, to_jsonable
from boxwright.core.decode_spec import DecodeSpec
from boxwright.core.errors import ManifestError
from boxwright.core.preprocess import Preprocess

SCHEMA_VERSION = 1
METADATA_KEY = "boxwright.manifest"
Stage = Literal["raw", "boxes", "detections"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
InputKind = Literal["tensor", "pixels"]


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """How an INT8 model was made.

    Attributes:
        method: of the ranges, e.g. "percentile 99.99".
        data_sha256: of the calibration images.
        num_images: calibrated on.
        layers_in_float: names of the nodes that stayed in float.
        layers_run_twice: names of those that run twice, since their input is quantized in two steps.
        layers_run_three_times: likewise, since their weights are too.
        int8_share: of the multiplications before the raw heads, those that an engine executed on integers, 0 to 1, by
            engine; None where unknown, as in files of before this field.
        map_before: AP of the float model, 0 to 1, where measured.
        map_after: AP of this model.
        map_images: what the two were measured on, e.g. "coco-tiny val, 80 images".
        map_images_sha256: of these images; `data_sha256` again where calibration images were held back in turn.
        latency_ms: of each candidate that was measured.
    """

    method: str
    data_sha256: str
    num_images: int
    layers_in_float: tuple[str, ...] = ()
    layers_run_twice: tuple[str, ...] = ()
    layers_run_three_times: tuple[str, ...] = ()
    int8_share: dict[str, float] | None = None
    map_before: float | None = None
    map_after: float | None = None
    map_images: str | None = None
    map_images_sha256: str | None = None
    latency_ms: dict[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class VerificationRecord:
    """What the comparison of this file with its source found.

    Attributes:
        reference: what it was compared with, e.g. "torch".
        num_images: compared on.
        num_boxes: of the reference; below 50 nothing is proven.
        matched_fraction: of the boxes of either side that have a partner of their class on the other.
        worst_box_difference: in pixels of the network's input.
        worst_score_difference: of matched boxes.
        proven: whether there were enough boxes to tell.
    """

    reference: str
    num_images: int
    num_boxes: int
    matched_fraction: float
    worst_box_difference: float
    worst_score_difference: float
    proven: bool


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything a runtime must know of a model file.

    Attributes:
        family: of the detector, e.g. "yolox".
        variant: e.g. "yolox-nano".
        class_names: in the order of the class ids.
        preprocess: from image to input.
        decode: from raw heads to detections.
        stage: how far the graph goes by itself: `raw` heads, decoded `boxes` and scores, or `detections`.
        precision: of the weights and activations.
        input_kind: `tensor` (float NCHW made by `preprocess`) or `pixels` (uint8 NHWC in BGR order, all images of a
            batch of one size; the graph preprocesses, and its detections are in pixels of the image).
        score_threshold: that `Detector` passes by default.
        iou_threshold: likewise.
        source_sha256: of the checkpoint or foreign file that the model came from; None for weights made in memory.
        boxwright_version: that wrote the file.
        calibration: of an INT8 model.
        verification: of the export.
        schema_version: of this description.
    """

    family: str
    variant: str
    class_names: tuple[str, ...]
    preprocess: Preprocess
    decode: DecodeSpec
    stage: Stage
    precision: Precision = "fp32"
    input_kind: InputKind = "tensor"
    score_threshold: float = 0.25
    iou_threshold: float = 0.7
    source_sha256: str | None = None
    boxwright_version: str = ""
    calibration: CalibrationRecord | None = None
    verification: VerificationRecord | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version > SCHEMA_VERSION:
            raise ManifestError(
                "manifest.schema_version",
                expected=f"at most {SCHEMA_VERSION}",
                got=str(self.schema_version),
                fix="update boxwright",
            )
        if len(self.class_names) != self.decode.num_classes:
            raise ManifestError(
                "manifest.class_names",
                expected=f"{self.decode.num_classes} names, one for each class of the head",
                got=str(len(self.class_names)),
                fix="pass the labels that the model was trained on",
            )
        for name, value in (("score_threshold", self.score_threshold), ("iou_threshold", self.iou_threshold)):
            if not 0 <= value <= 1:
                raise ManifestError(f"manifest.{name}", expected="a number in [0, 1]", got=str(value), fix="correct it")

    def to_json(self) -> str:
        """One JSON string."""
        return json.dumps(to_jsonable(self), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, source: str = "manifest") -> Manifest:
        """The inverse of `to_json`.

        Args:
            text: JSON.
            source: named in errors, e.g. the file that carried it.

        Raises:
            ManifestError: where it is no JSON, of a newer schema, or has unknown or missing keys or wrong values.
        """
        try:
            data: Any = json.loads(text)
        except ValueError as error:
            raise ManifestError(
                source, expected="a manifest in JSON", got=f"{error}", fix="export the model again"
            ) from error
        # A newer schema is named as such before its unknown keys are.
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ManifestError(
                f"{source}: manifest",
                expected=f"schema version {SCHEMA_VERSION} or older",
                got=str(version),
                fix="update boxwright",
            )
        return from_jsonable(cls, data, f"{source}: manifest")
