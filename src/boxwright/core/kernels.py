"""The compiled kernels where they are built, the numpy and OpenCV reference elsewhere: same arguments, same results.

The environment variable BOXWRIGHT_NATIVE=0 asks for the reference.
"""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType

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
) -> DecodeNmsOutput:
    """Turn the raw heads of a batch into detections; see `boxwright.core.decode.decode_nms` for the arguments.

    Args:
        num_threads: batch items decoded at the same time, by the compiled kernel alone.
    """
    return reference_decode.decode_nms(
        box_regression,
        class_logits,
        attributes=attributes,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        objectness=objectness,
        priors=priors,
        image_size_hw=image_size_hw,
    )


def letterbox(
    image: NDArray[np.generic],
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
) -> FloatArray:
    """Resize an image, place it on a padded canvas and normalise it; see `boxwright.core.letterbox.letterbox`."""
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
