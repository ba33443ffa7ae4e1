"""The package tensorrt: imported on demand, its log kept, its plugins loaded, its types told in numpy's words."""

from __future__ import annotations

import ctypes
import functools
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.core.errors import MissingDependencyError, UnsupportedError
from boxwright.runtimes.tensorrt_plugin import find_tensorrt_plugin, require_tensorrt_plugin

PLUGIN_NODE = "DecodeNMS"
# By the names of tensorrt.DataType; each generation has some of them, and those without a numpy type are no inputs
# or outputs of ours.
_DTYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}
# "1: [stdArchiveReader.cpp::StdArchiveReader::30] Error Code 1: Serialization (...)"
_PLACE_IN_SOURCES = re.compile(r"^(\d+: )?(\[[^\]]*\] )?(Error Code \d+: )?")
_MOST_ERRORS_KEPT = 20
_loaded_plugins: set[str] = set()


class ErrorLines:
    """What TensorRT said went wrong. The first line is the cause; those that follow say that it was one."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._warning: str | None = None
        self.on_message: Callable[[str, str], None] | None = None

    def add(self, severity: str, message: str) -> None:
        """Take a message; errors are kept, and everything goes to `on_message` where there is one."""
        line = _PLACE_IN_SOURCES.sub("", " ".join(message.split()))
        if severity in ("ERROR", "INTERNAL_ERROR") and len(self._lines) < _MOST_ERRORS_KEPT:
            self._lines.append(line)
        elif severity == "WARNING":
            self._warning = line
        if self.on_message is not None:
            self.on_message(severity, message)

    def clear(self) -> None:
        """Forget them, before something is tried."""
        self._lines.clear()
        self._warning = None

    @property
    def lines(self) -> tuple[str, ...]:
        """All since `clear`."""
        return tuple(self._lines)

    @property
    def cause(self) -> str:
        """The first of them; without any the last warning, as of a GPU that cannot be reached."""
        return self._lines[0] if self._lines else self._warning or "an error without a message"


def import_tensorrt(needed_for: str) -> Any:
    """The package tensorrt.

    Args:
        needed_for: named in errors.

    Raises:
        MissingDependencyError: where it is not installed.
        UnsupportedError: where a library of it, or of CUDA, is missing.
    """
    try:
        tensorrt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        if error.name != "tensorrt":
            raise _broken(needed_for, error) from error
        raise MissingDependencyError("tensorrt", extra="tensorrt", needed_for=needed_for) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise _broken(needed_for, error) from error
    if not hasattr(tensorrt, "Runtime"):  # a folder of that name beside the program
        raise MissingDependencyError("tensorrt", extra="tensorrt", needed_for=needed_for)
    return tensorrt


def _broken(needed_for: str, error: Exception) -> UnsupportedError:
    return UnsupportedError(
        needed_for,
        expected="a TensorRT that can be imported",
        got=str(error) or type(error).__name__,
        fix="install TensorRT again with the CUDA that it is made for",
    )


@functools.cache
def tensorrt_log(trt: Any) -> Any:
    """The one logger of the process, since TensorRT keeps the first that it is given; its `errors` are `ErrorLines`."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors = ErrorLines()

        def log(self, severity: Any, msg: str) -> None:
            self.errors.add(severity.name, msg)

    return Log()


def load_plugins(trt: Any, *, decode_nms: bool, needed_for: str) -> None:
    """Make TensorRT know its own plugins, and where asked for Boxwright's.

    Args:
        trt: the package.
        decode_nms: whether the node DecodeNMS is needed.
        needed_for: named in errors.

    Raises:
        UnsupportedError: where the plugin was not built for this TensorRT, or cannot be loaded.
    """
    if "tensorrt" not in _loaded_plugins:
        trt.init_libnvinfer_plugins(tensorrt_log(trt), "")
        _loaded_plugins.add("tensorrt")
    if decode_nms:
        _load(require_tensorrt_plugin(trt.__version__, needed_for), needed_for)


def load_plugin_if_built(trt: Any, needed_for: str) -> None:
    """The same for a file that may need the plugin; whether it does, TensorRT will say."""
    library = find_tensorrt_plugin(trt.__version__)
    load_plugins(trt, decode_nms=False, needed_for=needed_for)
    if library is not None:
        _load(library, needed_for)


def _load(library: Path, needed_for: str) -> None:
    """Load the plugin, which registers itself; once, since it would register itself again."""
    if str(library) in _loaded_plugins:
        return
    try:
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise UnsupportedError(
            needed_for,
            expected="Boxwright's plugin of TensorRT",
            got=str(error),
            fix="remove its folder and run: boxwright doctor --build-plugins",
        ) from error
    _loaded_plugins.add(str(library))


def dtype_of(trt: Any, data_type: Any) -> np.dtype[Any] | None:
    """Numpy's word for a tensorrt.DataType; None where it has none."""
    for name, dtype in _DTYPES.items():
        if getattr(trt.DataType, name, None) == data_type:
            return np.dtype(dtype)
    return None
