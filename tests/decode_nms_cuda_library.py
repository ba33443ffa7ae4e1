"""The CUDA kernels of DecodeNMS, or their emulation on the CPU, as libraries with a C interface."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.core.decode import DecodeNmsOutput
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes

CSRC = Path(__file__).resolve().parents[1] / "csrc"
ENTRY = Path(__file__).resolve().parent / "csrc"
# What both libraries are made of, beside the steps.
SOURCES = [CSRC / "cuda" / "parameters.cpp", CSRC / "decode_nms_validate.cpp"]
INCLUDES = [f"-I{CSRC}", f"-I{ENTRY}"]
_NAMES = (
    "box_coding",
    "score_activation",
    "objectness_activation",
    "score_combination",
    "overlap",
    "top_k_scope",
)
_LISTS = {"level_sizes": ctypes.c_int64, "level_strides": ctypes.c_float, "level_scale_xy": ctypes.c_float}
_NUMBERS = ("background_class", "pre_nms_top_k", "max_detections")
_FLAGS = ("class_specific_boxes", "multi_label", "with_nms", "class_agnostic", "clip_to_image")
_POINTERS = (
    "box_regression",
    "class_logits",
    "objectness",
    "priors",
    "image_size_hw",
    "score_threshold",
    "iou_threshold",
)


class EntryAttributes(ctypes.Structure):
    """As in decode_nms_cuda_entry.h."""

    _fields_ = (
        *((name, ctypes.c_char_p) for name in _NAMES),
        *((name, ctypes.POINTER(kind)) for name, kind in _LISTS.items()),
        *((f"num_{name}", ctypes.c_int64) for name in _LISTS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
        ("box_weights", ctypes.c_float * 4),
        ("delta_clip", ctypes.c_float),
        ("min_size", ctypes.c_float),
        *((name, ctypes.c_int32) for name in _FLAGS),
    )


class EntryInputs(ctypes.Structure):
    """As in decode_nms_cuda_entry.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch_size", "num_anchors", "num_classes")),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("is_float16", ctypes.c_int32),
        ("has_priors_for_each_item", ctypes.c_int32),
    )


class EntryOutputs(ctypes.Structure):
    """As in decode_nms_cuda_entry.h."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in DecodeNmsOutput._fields)


def entry_attributes(attributes: DecodeNmsAttributes) -> EntryAttributes:
    result = EntryAttributes()
    for name in _NAMES:
        setattr(result, name, getattr(attributes, name).encode())
    for name, kind in _LISTS.items():
        values = getattr(attributes, name)
        setattr(result, name, (kind * max(len(values), 1))(*values))
        setattr(result, f"num_{name}", len(values))
    for name in (*_NUMBERS, *_FLAGS, "delta_clip", "min_size"):
        setattr(result, name, getattr(attributes, name))
    result.box_weights = (ctypes.c_float * 4)(*attributes.box_weights)
    return result


class EmulatedKernels:
    """The library of decode_nms_cuda_emulated.cpp."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.workspace_size.restype = ctypes.c_size_t

    def decode_nms(
        self,
        *,
        box_regression: Any,
        class_logits: Any,
        attributes: DecodeNmsAttributes,
        score_threshold: float,
        iou_threshold: float,
        objectness: Any = None,
        priors: Any = None,
        image_size_hw: Any = None,
        thread_order: int = 0,
    ) -> DecodeNmsOutput:
        """As `boxwright.core.decode.decode_nms`; heads may be float16. Raises ValueError where the kernel refuses."""
        batch_size, num_anchors, num_classes = class_logits.shape
        kind = class_logits.dtype
        arrays = {
            "box_regression": box_regression.astype(kind),
            "class_logits": class_logits,
            "objectness": None if objectness is None else objectness.astype(kind),
            "priors": priors,
            "image_size_hw": image_size_hw,
            "score_threshold": np.array([score_threshold], dtype=np.float32),
            "iou_threshold": np.array([iou_threshold], dtype=np.float32),
        }
        arrays = {name: None if array is None else np.ascontiguousarray(array) for name, array in arrays.items()}
        inputs = EntryInputs(batch_size=batch_size, num_anchors=num_anchors, num_classes=num_classes)
        for name, array in arrays.items():
            setattr(inputs, name, None if array is None else array.ctypes.data)
        inputs.is_float16 = kind == np.float16
        inputs.has_priors_for_each_item = priors is not None and priors.ndim == 3
        outputs = empty_outputs(batch_size, attributes.max_detections, np.full)
        c_outputs = EntryOutputs(*(array.ctypes.data for array in outputs))
        c_attributes = entry_attributes(attributes)
        size = self._library.workspace_size(ctypes.byref(c_attributes), ctypes.byref(inputs))
        workspace = np.full(size, 0xA5, dtype=np.uint8)
        message = ctypes.create_string_buffer(500)
        status = self._library.decode_nms(
            ctypes.byref(c_attributes),
            ctypes.byref(inputs),
            ctypes.byref(c_outputs),
            ctypes.c_void_p(workspace.ctypes.data),
            thread_order,
            message,
            ctypes.c_size_t(len(message)),
        )
        if status != 0:
            raise ValueError(message.value.decode())
        return outputs


def empty_outputs(batch_size: int, max_detections: int, full: Callable[..., Any]) -> DecodeNmsOutput:
    """Room for results, filled with rubbish by numpy's `full` or one like it."""
    top = max_detections
    return DecodeNmsOutput(
        num_detections=full((batch_size, 1), -7, dtype=np.int32),
        boxes=full((batch_size, top, 4), -7, dtype=np.float32),
        scores=full((batch_size, top), -7, dtype=np.float32),
        class_ids=full((batch_size, top), -7, dtype=np.int32),
    )
