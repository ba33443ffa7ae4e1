"""Other ways to INT8, by other people's tools: a file here is a method, e.g. `boxwright calibrate --method nncf`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.sessions import Tensors
from boxwright.core.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodInputs:
    """What a method works with.

    Attributes:
        model: the float model; its `proto` is what is to be quantized, up to the raw heads.
        batches: makes the network's inputs of the calibration images anew, with how many images count in each.
        num_images: in these.
        engine: that the result is for.
        on_progress: to be called with the number of images done.
    """

    model: FloatModel
    batches: Callable[[], Iterator[tuple[Tensors, int]]]
    num_images: int
    engine: str
    on_progress: Callable[[int], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class MethodResult:
    """What a method made.

    Attributes:
        proto: the quantized model, from images to detections like the float one; None where the method writes no model.
        description: one line for the manifest, e.g. "NNCF 2.18, preset mixed".
        layers_in_float: names of the float model's layers that stayed in float.
        write_extra: writes what goes beside or instead of the model, e.g. a calibrator cache, given the path that
            was asked for; returns the file that it wrote.
        emulation: where there is no model, one that ONNX Runtime can run, to measure what the engine's will cost.
    """

    proto: onnx.ModelProto | None
    description: str
    layers_in_float: tuple[str, ...] = ()
    write_extra: Callable[[Path], Path] | None = None
    emulation: onnx.ModelProto | None = None


def run_tool(name: str, inputs: MethodInputs) -> MethodResult:
    """Quantize by the method of that name, e.g. "trt-cache".

    Raises:
        UnsupportedError: where there is none.
        MissingDependencyError: where its tool is not installed.
    """
    known = sorted(info.name.replace("_", "-") for info in pkgutil.iter_modules(__path__))
    if name not in known:
        raise UnsupportedError(
            "--method", expected="one of " + ", ".join(known), got=repr(name), fix="pass one of these"
        )
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    result: MethodResult = module.run(inputs)
    return result
