"""Takes a detector from a trained checkpoint to a small box at the edge, and proves that nothing was lost.

The names below load their modules on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from boxwright.core.detections import Detections as Detections
    from boxwright.core.manifest import Manifest as Manifest
    from boxwright.models import load_model as load_model
    from boxwright.runtimes.detector import Detector as Detector

_HOME_OF_NAME = {
    "Detections": "boxwright.core.detections",
    "Detector": "boxwright.runtimes.detector",
    "Manifest": "boxwright.core.manifest",
    "benchmark": "boxwright.bench",
    "calibrate": "boxwright.calibration.api",
    "export": "boxwright.export.api",
    "load_model": "boxwright.models",
}
__all__ = ["Detections", "Detector", "Manifest", "__version__", "benchmark", "calibrate", "export", "load_model"]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that defines it."""
    if name not in _HOME_OF_NAME:
        raise AttributeError(f"module 'boxwright' has no attribute {name!r}")
    home = importlib.import_module(_HOME_OF_NAME[name])
    # The package `export` has been bound to its name by the import; it can be called, see below.
    return globals().setdefault(name, getattr(home, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _CallablePackage(ModuleType):
    """The package `boxwright.export`, which is also the function of that name: `boxwright.export(...)`."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return importlib.import_module("boxwright.export.api").export(*args, **kwargs)


class _Package(ModuleType):
    """This package; Python binds a subpackage here as soon as anything imports it, so `export` must be both."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "export" and isinstance(value, ModuleType):
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
