"""Which engines and packages are installed here, and which extra brings those that are not."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ready", "installed", "missing", "broken"]

# Extra -> what it is for, and the modules that its packages bring.
EXTRAS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "onnxruntime": ("run ONNX files", ("onnxruntime",)),
    "openvino": ("run and write OpenVINO models", ("openvino",)),
    "tensorrt": ("build and run TensorRT engines", ("cuda.bindings", "onnx", "onnx_ir", "onnxscript", "tensorrt")),
    "export": (
        "export a checkpoint to ONNX",
        ("google.protobuf", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "timm", "torch", "torchvision", "yaml"),
    ),
    "train": (
        "train a detector",
        (
            "faster_coco_eval",
            "lightning",
            "optuna",
            "scipy",
            "skimage",
            "sklearn",
            "tensorboard",
            "timm",
            "torch",
            "torchao",
            "torchvision",
            "yaml",
        ),
    ),
    "int8": (
        "quantize to INT8",
        ("faster_coco_eval", "matplotlib", "nncf", "onnx", "onnx_ir", "onnxruntime", "yaml"),
    ),
    "bench": (
        "measure speed and mAP",
        ("faster_coco_eval", "matplotlib", "mlperf_loadgen", "onnx", "plotly", "yaml"),
    ),
    "viz": ("draw detections and curves", ("PIL", "matplotlib", "supervision")),
}
_EXTRA_OF_VERB = {"calibrate": "int8", "models": "export"}
_EXTRA_OF_ENGINE = {"torch": "export"}
_MODULE_OF_ENGINE = {"opencv": "cv2"}
# Importing torch takes seconds and says nothing more than that it is there.
_NOT_TRIED = ("torch",)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine that Boxwright has a backend for.

    Attributes:
        name: as for `--backend`.
        status: "ready" (it imports), "installed" (there, not tried), "missing" or "broken".
        version: None where it is missing or does not say.
        devices: that it can run on, in its own words.
        problem: why it does not import, if it is broken.
        install: the command that brings it, if it is missing.
    """

    name: str
    status: Status
    version: str | None = None
    devices: tuple[str, ...] = ()
    problem: str | None = None
    install: str | None = None


@dataclass(frozen=True, kw_only=True)
class MissingExtra:
    """An extra of which something is not installed.

    Attributes:
        extra: its name.
        purpose: what it is for.
        modules: that are not there.
        install: the command that brings them.
    """

    extra: str
    purpose: str
    modules: tuple[str, ...]
    install: str


def find_engines() -> tuple[Engine, ...]:
    """Look at every engine that there is a backend for, and import those that import quickly."""
    from boxwright.runtimes.backend import backend_names

    return tuple(_examine_engine(name) for name in backend_names())


def find_missing_extras() -> tuple[MissingExtra, ...]:
    """The extras of which something is not installed, and what."""
    missing = []
    for extra, (purpose, modules) in EXTRAS.items():
        absent = tuple(module for module in modules if not _is_there(module))
        if absent:
            missing.append(MissingExtra(extra=extra, purpose=purpose, modules=absent, install=_install_command(extra)))
    return tuple(missing)


def _examine_engine(name: str) -> Engine:
    module_name = _MODULE_OF_ENGINE.get(name, name)
    if not _is_there(module_name):
        return Engine(name=name, status="missing", install=_install_command(_EXTRA_OF_ENGINE.get(name, name)))
    try:
        if name in _NOT_TRIED:
            return Engine(name=name, status="installed", version=importlib.metadata.version(name))
        module = importlib.import_module(module_name)
        return Engine(name=name, status="ready", version=module.__version__, devices=_devices(name, module))
    except Exception as error:  # a broken installation fails in any way; which one is what the user asked
        return Engine(name=name, status="broken", problem=f"{type(error).__name__}: {error}")


def _devices(name: str, module: Any) -> tuple[str, ...]:
    """What the engine says that it can run on."""
    if name == "onnxruntime":
        return tuple(provider.removesuffix("ExecutionProvider") for provider in module.get_available_providers())
    if name == "openvino":
        return tuple(module.Core().available_devices)
    if name == "tensorrt":
        from boxwright.runtimes.cuda_runtime import load_cuda

        cuda = load_cuda("TensorRT")  # what is wrong without a GPU or its driver, this says
        return tuple(f"cuda:{index} {cuda.device(index).name}" for index in range(cuda.num_devices()))
    return ()


def _is_there(module: str) -> bool:
    """Whether a module could be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it would be in
        return False


def _install_command(extra: str) -> str:
    return f"pip install 'boxwright[{extra}]'"


def extra_that_brings(module: str, *, verb: str) -> str | None:
    """The extra to install for a module that is not there.

    Args:
        module: its name, e.g. "torch" or "onnx.helper".
        verb: that needs it; where several extras bring the module, the verb's own is preferred.

    Returns:
        The extra's name; None for a module that no extra brings.
    """
    package = module.partition(".")[0]
    candidates = [
        extra
        for extra, (_, modules) in EXTRAS.items()
        if extra != "tensorrt" and package in (name.partition(".")[0] for name in modules)
    ]
    preferred = _EXTRA_OF_VERB.get(verb, verb)
    return preferred if preferred in candidates else next(iter(candidates), None)
