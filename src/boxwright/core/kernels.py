"""The compiled kernels where they are built, the numpy and OpenCV reference elsewhere: same arguments, same results.

The environment variable BOXWRIGHT_NATIVE=0 asks for the reference.
"""

from __future__ import annotations

import importlib
import os
import warnings
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core import decode as reference_decode
from boxwright.core import letterbox as reference_letterbox
from boxwright.core.boxes import FloatArray
from boxwright.core.decode import DecodeNmsOutput
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes

_ENVIRONMENT_SWITCH = "BOXWRIGHT_NATIVE"


def _load_native() -> ModuleType | None:
    """The extension module, or None (with one warning) where it is missing or not wanted."""
    if os.environ.get(_ENVIRONMENT_SWITCH, "") == "0":
        return None
    try:
        return importlib.import_module("boxwright.core._native")
    except ImportError as error:
        warnings.warn(
            f"boxwright's compiled kernels cannot be imported ({error}); the slower numpy reference serves instead. "
            "Reinstall boxwright with a C++17 compiler at hand to build them.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


_native = _load_native()


def instruction_sets() -> list[str]:
    """Instruction sets that the compiled kernels can use here, best first; empty where the reference serves."""
    return [] if _native is None else list(_native.instruction_sets())


def decode_nms(
    box_regression: FloatArray,
    class_logits: FloatArray,
    *,
    attributes: DecodeNmsAttributes,
    score_threshold: float,
    iou_threshold: float,
    objectness: FloatArray | None = None,
    priors: FloatArray | None = None,
    image_size_hw: FloatArray | None = None,
    num_threads: int = 1,
    instruction_set: str | None = None,
) -> DecodeNmsOutput:
    """Turn the raw heads of a batch into detections.

    Float32 inputs are read where they lie, in whatever order (slices of a wider head, transposed views); others are
    copied. See `boxwright.core.decode.decode_nms` for the meaning and the other arguments.

    Args:
        num_threads: images of the batch that are decoded at the same time, by the compiled kernel alone.
        instruction_set: one of `instruction_sets()`, for tests; None for the best.

    Raises:
        InputError: where shapes do not fit each other or the attributes, or a threshold is outside [0, 1].
    """
    return PreparedDecodeNms(attributes)(
        box_regression,
        class_logits,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        objectness=objectness,
        priors=priors,
        image_size_hw=image_size_hw,
        num_threads=num_threads,
        instruction_set=instruction_set,
    )


class PreparedDecodeNms:
    """DecodeNMS with its attributes, and its priors where they are constant, made ready once for many calls."""

    def __init__(self, attributes: DecodeNmsAttributes, priors: FloatArray | None = None) -> None:
        """Make ready.

        Args:
            attributes: of the operator.
            priors: (N, 4), for calls that give none.
        """
        self._attributes = attributes
        self._priors = priors
        if _native is not None:
            self._native_attributes = _native_attributes(attributes)
            self._native_priors = None if priors is None else _as_float32(priors)[None]  # (1, N, 4)

    def __call__(
        self,
        box_regression: FloatArray,
        class_logits: FloatArray,
        *,
        score_threshold: float,
        iou_threshold: float,
        objectness: FloatArray | None = None,
        priors: FloatArray | None = None,
        image_size_hw: FloatArray | None = None,
        num_threads: int = 1,
        instruction_set: str | None = None,
    ) -> DecodeNmsOutput:
        """Turn the raw heads of a batch into detections; see `decode_nms`."""
        inputs = (box_regression, class_logits)
        rest: dict[str, Any] = {
            "attributes": self._attributes,
            "score_threshold": score_threshold,
            "iou_threshold": iou_threshold,
            "objectness": objectness,
            "priors": self._priors if priors is None else priors,
            "image_size_hw": image_size_hw,
        }
        if _native is None:
            return reference_decode.decode_nms(*inputs, **rest)
        if class_logits.size == 0:  # the kernel does not look at what nothing is read of
            reference_decode.check_inputs(*inputs, **rest)
        try:
            output = _empty_output(class_logits.shape[0], self._attributes.max_detections)
            _native.decode_nms(
                self._native_attributes,
                _as_float32(box_regression),
                _as_float32(class_logits),
                None if objectness is None else _as_float32(objectness),
                self._native_priors if priors is None else _with_batch_axis(_as_float32(priors)),
                None if image_size_hw is None else np.ascontiguousarray(image_size_hw, dtype=np.float32),
                score_threshold,
                iou_threshold,
                *output,
                num_threads,
                instruction_set,
            )
        except (IndexError, TypeError, ValueError):
            reference_decode.check_inputs(*inputs, **rest)  # says in full what is wrong
            raise
        return output


def _empty_output(batch_size: int, max_detections: int) -> DecodeNmsOutput:
    """Arrays for the kernel to fill."""
    return DecodeNmsOutput(
        num_detections=np.empty((batch_size, 1), dtype=np.int32),
        boxes=np.empty((batch_size, max_detections, 4), dtype=np.float32),
        scores=np.empty((batch_size, max_detections), dtype=np.float32),
        class_ids=np.empty((batch_size, max_detections), dtype=np.int32),
    )


def _with_batch_axis(priors: FloatArray) -> FloatArray:
    return priors[None] if priors.ndim == 2 else priors  # (1, N, 4) or (B, N, 4)


def letterbox(
    image: NDArray[np.uint8] | NDArray[np.float32],
    *,
    resized_hw: tuple[int, int],
    offset_tl: tuple[int, int],
    size_hw: tuple[int, int],
    pad_value: tuple[float, float, float],
    scale: tuple[float, float, float],
    bias: tuple[float, float, float],
    swap_channels: bool,
    interpolation: str = "linear",
    out: FloatArray | None = None,
    instruction_set: str | None = None,
) -> FloatArray:
    """Resize an image, place it on a padded canvas and normalise it.

    Linear interpolation of uint8 pixels is compiled, and equals OpenCV's to the bit; other cases are the reference's.
    See `boxwright.core.letterbox.letterbox` for the other arguments.

    Args:
        instruction_set: one of `instruction_sets()`, for tests; None for the best.
    """
    if _native is None or interpolation != "linear" or image.dtype != np.uint8:
        return reference_letterbox.letterbox(
            image,
            resized_hw=resized_hw,
            offset_tl=offset_tl,
            size_hw=size_hw,
            pad_value=pad_value,
            scale=scale,
            bias=bias,
            swap_channels=swap_channels,
            interpolation=interpolation,
            out=out,
        )
    canvas = out
    if canvas is None or not canvas.flags.c_contiguous:
        canvas = np.empty((3, *size_hw), dtype=np.float32)
    pixels_are_dense = image.strides[2] == 1 and image.strides[1] == 3
    _native.letterbox(
        image if pixels_are_dense else np.ascontiguousarray(image),
        canvas,
        resized_hw,
        offset_tl,
        pad_value,
        scale,
        bias,
        swap_channels,
        instruction_set,
    )
    if out is None or canvas is out:
        return canvas
    out[:] = canvas
    return out


def boxes_to_image(
    boxes_xyxy: FloatArray,
    *,
    resized_hw: tuple[int, int],
    offset_tl: tuple[int, int],
    image_size_hw: tuple[int, int],
) -> FloatArray:
    """Boxes in pixels of the network's input to boxes in pixels of the image, clipped to it.

    Args:
        boxes_xyxy: (N, 4).
        resized_hw: size of the image on the network's input.
        offset_tl: row and column of its top-left corner there.
        image_size_hw: of the image.

    Returns:
        (N, 4) float32.
    """
    if _native is None or boxes_xyxy.dtype != np.float32 or boxes_xyxy.ndim != 2:
        return reference_letterbox.boxes_to_image(
            boxes_xyxy, resized_hw=resized_hw, offset_tl=offset_tl, image_size_hw=image_size_hw
        )
    image_boxes_xyxy = np.empty(boxes_xyxy.shape, dtype=np.float32)
    contiguous = np.ascontiguousarray(boxes_xyxy)
    _native.boxes_to_image(contiguous, image_boxes_xyxy, resized_hw, offset_tl, image_size_hw)
    return image_boxes_xyxy


@lru_cache(maxsize=64)
def _native_attributes(attributes: DecodeNmsAttributes) -> Any:
    assert _native is not None
    return _native.DecodeNmsAttributes(**vars(attributes))


def _as_float32(array: FloatArray) -> FloatArray:
    """The same array where it is float32 and lies on whole floats, else a copy."""
    if array.flags.carray and array.dtype == np.float32:  # the usual case, found out quickly
        return array
    if array.dtype == np.float32 and array.flags.aligned and all(stride % 4 == 0 for stride in array.strides):
        return array
    return np.ascontiguousarray(array, dtype=np.float32)
