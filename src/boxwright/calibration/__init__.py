"""INT8 ranges, placement and the accuracy that they keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boxwright.calibration.api import CalibrationResult as CalibrationResult
    from boxwright.calibration.api import calibrate as calibrate

__all__ = ["CalibrationResult", "calibrate"]


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing a part of the package loads no engine."""
    if name in __all__:
        from boxwright.calibration import api

        return getattr(api, name)
    raise AttributeError(f"module 'boxwright.calibration' has no attribute {name!r}")
