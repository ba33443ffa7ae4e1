"""An ONNX file that Boxwright did not make: what its image input is, what it gives, and its graph to be changed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveInitializersFromInputsPass

from boxwright.core.errors import ModelFileError, UnsupportedError
from boxwright.export.graph_builder import free_names
from boxwright.export.onnx_files import INPUT_NAME, read_onnx

Arrays = dict[str, NDArray[Any]]
_MASK_NAME = "pixel_mask"


@dataclass(kw_only=True)
class ForeignFile:
    """A detector in ONNX whose outputs are still its own.

    Attributes:
        path: of the file.
        size_hw: of its input.
        num_classes: that the labels name.
        batch: of its input; None where open.
        input_names: in the file: the image's, and the pixel mask's where it has one.
    """

    path: Path
    size_hw: tuple[int, int]
    num_classes: int
    batch: int | None
    input_names: tuple[str, ...]

    @classmethod
    def open(cls, path: Path, wanted_hw: tuple[int, int] | None, num_classes: int) -> ForeignFile:
        """Look at a file.

        Args:
            path: of it.
            wanted_hw: the size asked for; needed where the graph leaves it open.
            num_classes: that the labels name.

        Raises:
            ModelFileError: where it is damaged, or its inputs are not those of a detector.
            UnsupportedError: where its size is open and none is asked for, or it is another.
        """
        inputs = _required_inputs(read_onnx(path))
        images = inputs[0] if inputs else None
        shape = None if images is None else images.shape
        is_image = (shape is not None and len(shape) == 4 and shape[1] in (3, None)) or _is_open(shape, 1)
        if images is None or shape is None or not is_image or images.dtype != ir.DataType.FLOAT:
            raise _wrong_inputs(path, inputs)
        names = [str(value.name) for value in inputs]
        if len(names) > 2 or (len(names) == 2 and "mask" not in names[1]):
            raise _wrong_inputs(path, inputs)
        return cls(
            path=path,
            size_hw=_size_of(shape, path, wanted_hw),
            num_classes=num_classes,
            batch=shape[0] if isinstance(shape[0], int) else None,
            input_names=tuple(names),
        )

    @property
    def has_pixel_mask(self) -> bool:
        """Whether it takes a second input that marks the padding."""
        return len(self.input_names) == 2

    @cached_property
    def outputs(self) -> Arrays:
        """What it gives for one image of noise, by name: shapes as they are, and values as they come."""
        images = np.random.default_rng(0).normal(0, 1, (self.batch or 1, 3, *self.size_hw)).astype(np.float32)
        return self.run(images)

    def run(self, images: NDArray[np.float32], pixel_mask: NDArray[np.int64] | None = None) -> Arrays:
        """Run the original as it is.

        Args:
            images: (B, 3, H, W).
            pixel_mask: (B, H, W); all ones where None.

        Raises:
            ModelFileError: where ONNX Runtime cannot.
        """
        inputs: dict[str, Any] = {self.input_names[0]: images}
        if self.has_pixel_mask:
            mask = np.ones((len(images), *self.size_hw), dtype=np.int64) if pixel_mask is None else pixel_mask
            inputs[self.input_names[1]] = mask
        try:
            names = [entry.name for entry in self._session.get_outputs()]
            return dict(zip(names, self._session.run(names, inputs), strict=True))
        except Exception as error:  # the engine's exceptions have no other base
            raise _unusable(self.path, error) from error

    @cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        try:
            return onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the engine's exceptions have no other base
            raise _unusable(self.path, error) from error

    def graph(self, opset: int) -> ir.Model:
        """Its graph in that operator set or a newer one, the image input as `images` and of a fixed size.

        Raises:
            UnsupportedError: where its operators do not convert.
        """
        model = _raise_opset(read_onnx(self.path), self.path, opset)
        RemoveInitializersFromInputsPass()(model)
        inputs = _required_inputs(model)
        free_names(model.graph, {INPUT_NAME, _MASK_NAME}, inputs)
        batch: int | str = "batch" if self.batch is None else self.batch
        for value, name, shape in zip(inputs, (INPUT_NAME, _MASK_NAME), ([3], []), strict=False):
            value.name, value.shape = name, ir.Shape([batch, *shape, *self.size_hw])
        return model

    def complain(self, expected: str) -> ModelFileError:
        """An error that says what outputs would have been right."""
        found = ", ".join(f"{name} {array.shape}" for name, array in self.outputs.items())
        return ModelFileError(str(self.path), expected=expected, got=found, fix="pass the --head that the file has")

    def wrong_class_count(self, num_found: int) -> ModelFileError:
        """An error for labels that are not as many as the classes."""
        return ModelFileError(
            f"labels for {self.path}",
            expected=f"{num_found} names, one for each class of the head",
            got=str(self.num_classes),
            fix="pass the --labels that it was trained on, or the --head that it has",
        )


def is_probability(values: NDArray[Any]) -> bool:
    """Whether numbers look as if they came through a sigmoid or softmax already."""
    return bool(np.isfinite(values).all() and values.min(initial=0) >= 0 and values.max(initial=0) <= 1)


def _required_inputs(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _is_open(shape: ir.Shape | None, axis: int) -> bool:
    return shape is not None and len(shape) == 4 and not isinstance(shape[axis], int)


def _size_of(shape: ir.Shape, path: Path, wanted_hw: tuple[int, int] | None) -> tuple[int, int]:
    sides = [side if isinstance(side, int) else None for side in shape[2:]]
    if None in sides and wanted_hw is None:
        raise UnsupportedError(
            str(path),
            expected="the size of the input, which the graph leaves open",
            got="none",
            fix="pass --imgsz, e.g. --imgsz 640",
        )
    height, width = (side or wanted for side, wanted in zip(sides, wanted_hw or (0, 0), strict=True))
    if wanted_hw is not None and (height, width) != wanted_hw:
        raise UnsupportedError(
            "--imgsz",
            expected=f"{height}x{width}, which {path.name} is made for",
            got=f"{wanted_hw[0]}x{wanted_hw[1]}",
            fix="leave out --imgsz",
        )
    return height, width


def _wrong_inputs(path: Path, inputs: list[ir.Value]) -> ModelFileError:
    found = ", ".join(f"{value.name} {value.dtype} {value.shape}" for value in inputs)
    return ModelFileError(
        str(path),
        expected="an input of images, float32 (B, 3, H, W), and at most a pixel mask beside it",
        got=found or "none",
        fix="adopt a detector that takes such images",
    )


def _unusable(path: Path, error: Exception) -> ModelFileError:
    return ModelFileError(
        str(path),
        expected="a model that ONNX Runtime runs",
        got=(str(error).strip().splitlines() or [type(error).__name__])[0][:300],
        fix="export it again where it was made",
    )


def _raise_opset(model: ir.Model, path: Path, opset: int) -> ir.Model:
    current = model.graph.opset_imports.get("", 0)
    if current >= opset:
        return model
    try:
        return ir.from_proto(onnx.version_converter.convert_version(ir.to_proto(model), opset))
    except Exception as error:  # the converter raises RuntimeError and others of its own
        raise UnsupportedError(
            str(path),
            expected=f"operators that exist in opset {opset}",
            got=f"opset {current}, which does not convert ({str(error).strip().splitlines()[0][:200]})",
            fix=f"export the model with opset {opset} where it was made",
        ) from error
