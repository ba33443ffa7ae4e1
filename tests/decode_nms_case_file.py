"""Writes calls of DecodeNMS and their results for `kernels_test cases FILE` (csrc/case_file.h), which replays them.

So the C++ tests, under sanitizers and on other processors, run the same cases as the Python tests.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike

from boxwright.core.decode import DecodeNmsOutput
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes

NAMES = (
    "box_coding",
    "score_activation",
    "objectness_activation",
    "score_combination",
    "overlap",
    "top_k_scope",
)
NUMBERS = (
    "delta_clip",
    "min_size",
    "background_class",
    "pre_nms_top_k",
    "max_detections",
    "class_specific_boxes",
    "multi_label",
    "with_nms",
    "class_agnostic",
    "clip_to_image",
)
ARRAYS = ("box_regression", "class_logits", "objectness", "priors", "image_size_hw")


def write_case_file(file: Path, calls: Iterable[tuple[dict[str, Any], DecodeNmsOutput]]) -> None:
    """Write the arguments of `decode_nms` of each call, and its result."""
    with file.open("wb") as stream:
        for inputs, output in calls:
            _write_attributes(stream, inputs["attributes"])
            priors = inputs.get("priors")
            _write_numbers(stream, inputs["score_threshold"], inputs["iou_threshold"], *inputs["class_logits"].shape)
            has_shared_priors = priors is not None and priors.ndim == 2
            _write_numbers(stream, inputs.get("objectness") is not None, priors is not None, has_shared_priors)
            for name in ARRAYS:
                values = inputs.get(name)
                _write_array(stream, () if values is None else values, "<f4")
            for values, dtype in zip(output, ("<i4", "<f4", "<f4", "<i4"), strict=True):
                _write_array(stream, values, dtype)


def _write_attributes(stream: BinaryIO, attributes: DecodeNmsAttributes) -> None:
    for name in NAMES:
        _write_array(stream, np.frombuffer(getattr(attributes, name).encode(), np.uint8), "u1")
    _write_numbers(stream, *attributes.box_weights, *(getattr(attributes, name) for name in NUMBERS))
    _write_array(stream, attributes.level_sizes, "<i8")
    _write_array(stream, attributes.level_strides, "<f4")
    _write_array(stream, attributes.level_scale_xy, "<f4")


def _write_numbers(stream: BinaryIO, *numbers: float) -> None:
    stream.write(struct.pack(f"<{len(numbers)}d", *numbers))


def _write_array(stream: BinaryIO, values: ArrayLike, dtype: str) -> None:
    array = np.ascontiguousarray(values, dtype=dtype)
    _write_numbers(stream, array.size)
    stream.write(array.tobytes())
