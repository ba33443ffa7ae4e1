"""Graph passes, one file each; the file name is the registry.

A pass opens with its algebra and has `run(model) -> bool`, which changes the model in place and says whether it did,
and `ORDER`: passes run from the lowest to the highest. Every export runs all of them before decoding and NMS are put
in.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, Protocol, cast

import onnx_ir as ir


class GraphPass(Protocol):
    """What a file `export/passes/<name>.py` defines."""

    ORDER: int

    def run(self, model: ir.Model) -> bool:
        """Change the model in place; True where something changed."""


def find_passes() -> dict[str, GraphPass]:
    """All passes by name, in the order in which they run."""
    modules: dict[str, Any] = {
        info.name: importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)
    }
    ordered = sorted(modules, key=lambda name: (modules[name].ORDER, name))
    return {name: cast("GraphPass", modules[name]) for name in ordered}


def run_passes(model: ir.Model) -> tuple[str, ...]:
    """Run all passes once; returns the names of those that changed the model."""
    return tuple(name for name, graph_pass in find_passes().items() if graph_pass.run(model))
