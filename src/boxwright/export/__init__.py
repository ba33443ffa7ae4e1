"""From a PyTorch module to an ONNX file that detects the same, and on to the engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boxwright.export.api import ExportOptions as ExportOptions
    from boxwright.export.api import ExportResult as ExportResult
    from boxwright.export.api import export as export

__all__ = ["ExportOptions", "ExportResult", "export"]


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing a part of the package loads no onnx."""
    if name in __all__:
        from boxwright.export import api

        return getattr(api, name)
    raise AttributeError(f"module 'boxwright.export' has no attribute {name!r}")
