"""What an engine must offer, and how the engine for a model file is found.

A backend moves tensors; it knows no boxes. A file `runtimes/<engine>.py` with `BACKEND`, `SUFFIXES` and `available()`
is a backend; its file name is its name, and nothing else has to be edited. Importing such a file imports no engine.
Several engines have files that end in `.xml`; `XML_ROOT` names the first element of an engine's own. An engine that
does not run on the CPU names its `DEFAULT_DEVICE`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

import boxwright.runtimes
from boxwright.core.errors import InputError, ModelFileError, UnsupportedError
from boxwright.runtimes.model_file import locate_model_file, xml_root

Tensors = dict[str, NDArray[Any]]
BackendT = TypeVar("BackendT", bound="Backend")


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        shape: None where a dimension is open.
        dtype: of its numbers.
        is_optional: whether the model has a value of its own where none is given (inputs alone).
        largest: sizes that the engine takes at most, where it has open dimensions and bounds them (inputs alone).
    """

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    is_optional: bool = False
    largest: tuple[int, ...] | None = None


class Backend(Protocol):
    """A model opened by an engine."""

    @property
    def name(self) -> str:
        """Of the engine, as for `--backend`."""

    @property
    def device(self) -> str:
        """That it runs on, e.g. "cpu"."""

    @property
    def precision(self) -> str:
        """Of the arithmetic where the model is not quantized: "fp32", "fp16" or "bf16"."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """By name; the image is `images`."""

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """By name, in the model's order."""

    @property
    def manifest_json(self) -> str | None:
        """That came with the file, or None."""

    @classmethod
    def open(
        cls: type[BackendT],
        path: str | os.PathLike[str],
        *,
        device: str = "cpu",
        precision: str | None = None,
        num_threads: int = 0,
    ) -> BackendT:
        """Open a model file.

        Args:
            path: of the file, or of the folder that holds it.
            device: e.g. "cpu".
            precision: "fp32" (also where None), "fp16" or "bf16".
            num_threads: of the CPU; 0 leaves it to the engine.

        Raises:
            ModelFileError: where the file cannot be opened.
            UnsupportedError: where the engine cannot do this on this device, or not in this precision.
            MissingDependencyError: where the engine is not installed.
        """

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Tensors:
        """Run the model once.

        Args:
            inputs: by name, of the shapes and dtypes of `inputs`; optional ones may be left out.

        Returns:
            All outputs by name, in memory that no later run touches.

        Raises:
            InputError: where the inputs do not fit the model.
        """

    def submit(self, inputs: Mapping[str, NDArray[Any]]) -> object:
        """Start a run and return its ticket at once; the inputs must stay as they are until `wait`."""

    def wait(self, ticket: Any) -> Tensors:
        """The outputs of a run that `submit` started, as from `run`; once for each ticket."""

    def close(self) -> None:
        """Free the engine's memory; the backend cannot be used any more. Closing twice is fine."""

    def __enter__(self: BackendT) -> BackendT: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


class BackendModule(Protocol):
    """What a file `runtimes/<engine>.py` defines.

    Attributes:
        BACKEND: the class.
        SUFFIXES: of the files that it opens, its own format first.
    """

    BACKEND: type[Backend]
    SUFFIXES: tuple[str, ...]

    def available(self) -> str | None:
        """None where the engine is installed, else what is missing."""


def backend_names() -> tuple[str, ...]:
    """The names of all backends, installed or not, sorted."""
    return tuple(sorted(_backend_modules()))


def backend_module(name: str) -> BackendModule:
    """The file of a backend.

    Raises:
        UnsupportedError: where there is none of that name.
    """
    modules = _backend_modules()
    if name not in modules:
        raise UnsupportedError(
            f"backend {name!r}",
            expected="one of " + ", ".join(sorted(modules)),
            got=repr(name),
            fix="pass one of these",
        )
    return modules[name]


def open_backend(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    num_threads: int = 0,
) -> Backend:
    """Open a model file with the engine asked for, or else with an installed one that suits the file.

    Args:
        path: of a model file, or of the folder that an OpenVINO export made.
        backend: name of the engine; None lets the file decide.
        device: as for `Backend.open`; None for the engine's own, which is the CPU for most.
        precision: as for `Backend.open`.
        num_threads: as for `Backend.open`.

    Raises:
        ModelFileError: where the file is missing, or no engine opens files like it.
        UnsupportedError, MissingDependencyError: as for `Backend.open`.
    """
    file = locate_model_file(path)
    if backend is None:
        module = _module_for(file)
    else:
        module = backend_module(backend)
        _check_suits(module, backend, file)
    return module.BACKEND.open(
        file, device=device or default_device(module), precision=precision, num_threads=num_threads
    )


def default_device(module: BackendModule) -> str:
    """Where an engine runs if nothing else is said: its `DEFAULT_DEVICE`, or the CPU."""
    device: str = getattr(module, "DEFAULT_DEVICE", "cpu")
    return device


def default_device_for(path: str | os.PathLike[str], backend: str | None = None) -> str:
    """Where a file runs if nothing else is said, told by its suffix alone where no engine is named."""
    if backend is not None:
        return default_device(backend_module(backend))
    suffix = Path(path).suffix.lower()
    devices = {default_device(module) for module in _backend_modules().values() if suffix in module.SUFFIXES}
    return devices.pop() if len(devices) == 1 else "cpu"


def check_inputs(specs: Mapping[str, TensorSpec], inputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise `InputError` where tensors are missing, surplus, or of other shapes or dtypes than those of the model."""
    if inputs.keys() <= specs.keys() and all(
        _fits(spec, inputs[name]) if name in inputs else spec.is_optional for name, spec in specs.items()
    ):
        return
    raise InputError(
        "inputs of the model",
        expected=", ".join(f"{name} {spec.dtype} {_shape_text(spec.shape)}" for name, spec in specs.items()),
        got=", ".join(f"{name} {array.dtype} {_shape_text(array.shape)}" for name, array in inputs.items()) or "none",
        fix="pass tensors that fit",
    )


def closed_error(engine: str) -> InputError:
    """The error for running a backend that was closed."""
    return InputError(f"model in {engine}", expected="an open one", got="one that was closed", fix="open it again")


def run_failure(engine: str, reason: str) -> ModelFileError:
    """The error for a model that fails on inputs that fit it."""
    return ModelFileError(
        "model",
        expected=f"one that {engine} runs on the inputs that it declares",
        got=reason,
        fix="export it again, or pass another backend",
    )


def _fits(spec: TensorSpec, array: NDArray[Any]) -> bool:
    return (
        array.dtype == spec.dtype
        and len(array.shape) == len(spec.shape)
        and all(wanted in (None, size) for wanted, size in zip(spec.shape, array.shape, strict=True))
    )


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "(" + ", ".join("?" if size is None else str(size) for size in shape) + ")"


def _backend_modules() -> dict[str, BackendModule]:
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(boxwright.runtimes.__path__):
        module = importlib.import_module(f"boxwright.runtimes.{info.name}")
        if hasattr(module, "BACKEND"):
            found[info.name] = module
    return found


def _check_suits(module: BackendModule, name: str, file: Path) -> None:
    """Raise `ModelFileError` where a file is none of those that an engine opens."""
    got, expected = "", f"a file that {name} opens ({', '.join(module.SUFFIXES)})"
    if file.suffix.lower() not in module.SUFFIXES:
        got = repr(file.suffix)
    elif file.suffix.lower() == ".xml" and not _opens_root(module, root := xml_root(file)):
        got, expected = f"<{root}>", f"an XML file that {name} opens (<{module.XML_ROOT}>)"  # type: ignore[attr-defined]
    if got:
        raise ModelFileError(
            str(file), expected=expected, got=got, fix="pass another backend, or export the model for this one"
        )


def _opens_root(module: BackendModule, root: str) -> bool:
    """Whether an engine opens XML files with this first element; one that does not say so opens all."""
    return getattr(module, "XML_ROOT", root) == root


def _module_for(file: Path) -> BackendModule:
    """The installed engine whose own format comes nearest; where none is installed the first, whose `open` says so."""
    suffix = file.suffix.lower()
    modules = _backend_modules()
    if suffix == ".xml":
        modules = _modules_for_root(modules, file)
    suitable = sorted(
        (name for name in modules if suffix in modules[name].SUFFIXES),
        key=lambda name: (modules[name].SUFFIXES.index(suffix), name),
    )
    if not suitable:
        known = sorted({suffix for module in modules.values() for suffix in module.SUFFIXES})
        raise ModelFileError(
            str(file),
            expected="a model file (" + ", ".join(known) + ") or an OpenVINO folder",
            got=f"the suffix {file.suffix!r}" if file.suffix else "a file without a suffix",
            fix="export the model with 'boxwright export'",
        )
    installed = [name for name in suitable if modules[name].available() is None]
    return modules[(installed or suitable)[0]]


def _modules_for_root(modules: dict[str, BackendModule], file: Path) -> dict[str, BackendModule]:
    """Those that open XML files with the first element of this one."""
    root = xml_root(file)
    suitable = {name: module for name, module in modules.items() if _opens_root(module, root)}
    if not any(".xml" in module.SUFFIXES for module in suitable.values()):
        known = sorted(f"<{module.XML_ROOT}>" for module in modules.values() if hasattr(module, "XML_ROOT"))
        raise ModelFileError(
            str(file), expected="an XML file of " + " or ".join(known), got=f"<{root}>", fix="pass a model file"
        )
    return suitable
