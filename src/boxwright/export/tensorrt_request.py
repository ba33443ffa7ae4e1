"""What an engine is made from, and the machine that it is built on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from boxwright.core.errors import UnsupportedError
from boxwright.core.manifest import Manifest, VerificationRecord
from boxwright.export.tensorrt_api import BuilderApi
from boxwright.export.tensorrt_options import EngineOptions
from boxwright.runtimes.cuda_runtime import Cuda, CudaDevice, load_cuda
from boxwright.runtimes.tensorrt_library import import_tensorrt

Report = Callable[[str], None]
Images = Sequence[NDArray[np.uint8]]
# Compares an ONNX file with the source, at the detections.
CompareFile = Callable[[Path], VerificationRecord]


@dataclass(frozen=True, kw_only=True)
class BuildMachine:
    """Where an engine is built, and runs then.

    Attributes:
        api: of the TensorRT that is installed.
        cuda: to reach the GPU.
        device: the GPU.
    """

    api: BuilderApi
    cuda: Cuda
    device: CudaDevice


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """What an engine is made from.

    Attributes:
        graph: exported; left as it is.
        manifest: of the graph.
        precision: "fp32", "fp16" or "int8".
        batch: images in a batch, or those that it is to be fastest at where the batch is open.
        options: of the engine.
        images: of the comparison, which TensorRT's calibrator takes too.
        compare: an ONNX file with the source.
        source: named in errors.
        rebuild_command: that would make it again.
    """

    graph: ir.Model
    manifest: Manifest
    precision: str
    batch: int
    options: EngineOptions
    images: Images
    compare: CompareFile
    source: str
    rebuild_command: str


def open_build_machine(options: EngineOptions, needed_for: str = "--format tensorrt") -> BuildMachine:
    """TensorRT and the GPU of this machine; called before any work is done.

    Raises:
        MissingDependencyError: where a package is missing.
        UnsupportedError: where the driver, the GPU or a library is missing, or TensorRT is too old.
    """
    trt = import_tensorrt(needed_for)
    api = BuilderApi.of(trt)
    cuda = load_cuda(needed_for)
    if options.gpu >= cuda.num_devices():
        raise UnsupportedError(
            "--gpu", expected=f"a number below {cuda.num_devices()}", got=str(options.gpu), fix="pass another"
        )
    cuda.select(options.gpu)
    return BuildMachine(api=api, cuda=cuda, device=cuda.device(options.gpu))
