"""Whether an opened model and its manifest belong together, asked once, before the first image."""

from __future__ import annotations

import numpy as np

from boxwright.core.errors import ManifestError
from boxwright.core.manifest import Manifest
from boxwright.runtimes.backend import Backend

DETECTION_OUTPUTS = ("num_detections", "boxes", "scores", "class_ids")
# The same by the names that EfficientNMS's users know.
EFFICIENTNMS_OUTPUTS = ("num_dets", "det_boxes", "det_scores", "det_classes")
THRESHOLD_INPUTS = ("score_threshold", "iou_threshold")
_KNOWN_INPUTS = ("images", "pixel_mask", *THRESHOLD_INPUTS)


def check_fit(backend: Backend, manifest: Manifest, source: str) -> None:
    """Raise `ManifestError` where the tensors of the model are not those that the manifest describes.

    Args:
        backend: the opened model.
        manifest: of the model.
        source: named in the error.
    """
    required = [name for name, spec in backend.inputs.items() if not spec.is_optional]
    if "images" not in required or any(name not in _KNOWN_INPUTS for name in required):
        raise _misfit(source, "inputs of " + ", ".join(_KNOWN_INPUTS), ", ".join(required) or "none")
    takes_pixels = manifest.input_kind == "pixels"
    if manifest.preprocess.pixel_mask and not takes_pixels and "pixel_mask" not in backend.inputs:
        raise _misfit(source, "an input pixel_mask", ", ".join(required))
    outputs = _needed_outputs(manifest)
    if manifest.stage == "detections" and backend.outputs.keys() >= set(EFFICIENTNMS_OUTPUTS):
        outputs = EFFICIENTNMS_OUTPUTS
    if any(name not in backend.outputs for name in outputs):
        raise _misfit(source, f"outputs {', '.join(outputs)} at stage {manifest.stage}", ", ".join(backend.outputs))
    _check_image_size(backend, manifest, source)
    if manifest.stage != "detections":
        _check_heads(backend, manifest, source)


def _needed_outputs(manifest: Manifest) -> tuple[str, ...]:
    if manifest.stage == "detections":
        return DETECTION_OUTPUTS
    objectness = ("objectness",) if manifest.decode.has_objectness else ()
    return ("box_regression", "class_logits", *objectness)


def _check_image_size(backend: Backend, manifest: Manifest, source: str) -> None:
    shape, size_hw = backend.inputs["images"].shape, manifest.preprocess.size_hw
    if len(shape) != 4:
        raise _misfit(source, "an input images of 4 dimensions", str(len(shape)))
    if manifest.input_kind == "pixels":
        dtype = backend.inputs["images"].dtype
        if dtype != np.uint8 or shape[3] not in (3, None):
            raise _misfit(source, "an input images (B, H, W, 3) of uint8", f"{dtype} with {shape[3]} as the last size")
        return
    if size_hw is None:
        return
    got_hw = (shape[2], shape[3])
    if any(got not in (None, wanted) for got, wanted in zip(got_hw, size_hw, strict=True)):
        raise _misfit(source, f"an input of {size_hw[0]}x{size_hw[1]} pixels", f"{got_hw[0]}x{got_hw[1]}")


def _check_heads(backend: Backend, manifest: Manifest, source: str) -> None:
    shape = backend.outputs["class_logits"].shape
    if len(shape) != 3:
        raise _misfit(source, "class_logits of 3 dimensions", str(len(shape)))
    _, num_anchors, num_logits = shape
    if num_logits not in (None, manifest.decode.num_logits):
        raise _misfit(source, f"class_logits of {manifest.decode.num_logits} classes", str(num_logits))
    priors = manifest.decode.priors()
    if priors is not None and num_anchors not in (None, len(priors)):
        raise _misfit(source, f"class_logits of {len(priors)} anchors", str(num_anchors))


def _misfit(source: str, expected: str, got: str) -> ManifestError:
    return ManifestError(
        f"{source}: the manifest does not fit the model",
        expected=expected,
        got=got,
        fix="export the model again, or adopt it with 'boxwright export FILE --head ...'",
    )
