"""Speed and accuracy of the very same file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boxwright.bench.accuracy import evaluate as evaluate
    from boxwright.bench.run import benchmark as benchmark

__all__ = ["benchmark", "evaluate"]


def __getattr__(name: str) -> Any:
    """Load a public name on first use: a candidate's process imports this package and should stay small."""
    if name == "benchmark":
        from boxwright.bench.run import benchmark

        return benchmark
    if name == "evaluate":
        from boxwright.bench.accuracy import evaluate

        return evaluate
    raise AttributeError(f"module 'boxwright.bench' has no attribute {name!r}")
