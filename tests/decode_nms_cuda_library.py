"""The CUDA kernels of DecodeNMS, or their emulation on the CPU, as libraries with a C interface."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
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
    """The library of decode_nms_cuda_emulated.cpp, whose pointers are to the CPU's memory."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.workspace_size.restype = ctypes.c_size_t

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
        inputs = EntryInputs(is_float16=kind == np.float16)
        inputs.batch_size, inputs.num_anchors, inputs.num_classes = class_logits.shape
        inputs.has_priors_for_each_item = priors is not None and priors.ndim == 3
        outputs = empty_outputs(len(class_logits), attributes.max_detections)
        with contextlib.ExitStack() as stack:
            for name, array in arrays.items():
                setattr(inputs, name, None if array is None else stack.enter_context(self.readable(array)))
            c_outputs = EntryOutputs(*(stack.enter_context(self.writable(array)) for array in outputs))
            c_attributes = entry_attributes(attributes)
            size = self.library.workspace_size(ctypes.byref(c_attributes), ctypes.byref(inputs))
            workspace = ctypes.c_void_p(stack.enter_context(self.readable(np.full(size, 0xA5, dtype=np.uint8))))
            self.run(c_attributes, inputs, c_outputs, workspace, thread_order)
        return outputs

    def run(self, attributes: Any, inputs: Any, outputs: Any, workspace: Any, thread_order: int) -> None:
        message = ctypes.create_string_buffer(500)
        status = self.library.decode_nms(
            ctypes.byref(attributes),
            ctypes.byref(inputs),
            ctypes.byref(outputs),
            workspace,
            thread_order,
            message,
            ctypes.c_size_t(len(message)),
        )
        if status != 0:
            raise ValueError(message.value.decode() or f"CUDA error {status}")

    @contextlib.contextmanager
    def readable(self, array: Any) -> Iterator[int]:
        """Where the kernels find an array's numbers."""
        contiguous = np.ascontiguousarray(array)
        yield contiguous.ctypes.data

    @contextlib.contextmanager
    def writable(self, array: Any) -> Iterator[int]:
        """Where the kernels write an array's numbers, which are in it at the end."""
        yield array.ctypes.data


class DeviceKernels(EmulatedKernels):
    """The library of decode_nms_cuda_device.cu, whose pointers are to a GPU's memory."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.library.allocate.restype = ctypes.c_void_p
        self.library.median_time_us.restype = ctypes.c_float
        self.num_timed_runs = 0  # more than 0: `decode_nms` leaves the time of so many runs in `time_us`
        self.time_us = 0.0

    def device_name(self) -> str | None:
        name = ctypes.create_string_buffer(200)
        return name.value.decode() if self.library.device_name(name, ctypes.c_size_t(len(name))) else None

    def run(self, attributes: Any, inputs: Any, outputs: Any, workspace: Any, thread_order: int) -> None:
        super().run(attributes, inputs, outputs, workspace, thread_order)
        if self.num_timed_runs > 0:
            arguments = (ctypes.byref(each) for each in (attributes, inputs, outputs))
            self.time_us = self.library.median_time_us(*arguments, workspace, self.num_timed_runs)

    @contextlib.contextmanager
    def readable(self, array: Any) -> Iterator[int]:
        contiguous = np.ascontiguousarray(array)
        memory = self.library.allocate(ctypes.c_size_t(max(contiguous.nbytes, 1)))
        if not memory:
            raise MemoryError(f"no {contiguous.nbytes} bytes on the GPU")
        self._copy(self.library.copy_to_device, memory, contiguous.ctypes.data, contiguous.nbytes)
        try:
            yield memory
        finally:
            self.library.release(ctypes.c_void_p(memory))

    @contextlib.contextmanager
    def writable(self, array: Any) -> Iterator[int]:
        with self.readable(array) as memory:
            yield memory
            self._copy(self.library.copy_from_device, array.ctypes.data, memory, array.nbytes)

    @staticmethod
    def _copy(copy: Any, to: int, source: int, size: int) -> None:
        status = copy(ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size))
        if status != 0:
            raise RuntimeError(f"CUDA error {status}")


def empty_outputs(batch_size: int, max_detections: int) -> DecodeNmsOutput:
    """Room for results, filled with rubbish."""
    top = max_detections
    return DecodeNmsOutput(
        num_detections=np.full((batch_size, 1), -7, dtype=np.int32),
        boxes=np.full((batch_size, top, 4), -7, dtype=np.float32),
        scores=np.full((batch_size, top), -7, dtype=np.float32),
        class_ids=np.full((batch_size, top), -7, dtype=np.int32),
    )
