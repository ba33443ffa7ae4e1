"""A variant: one way to run a model on an engine, quantized or not. The search compares variants."""

from __future__ import annotations

from dataclasses import dataclass

from boxwright.calibration.recipe import Recipe
from boxwright.core.manifest import Precision


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to run a model.

    Attributes:
        engine: that runs it.
        precision: of what is not quantized, e.g. "bf16".
        recipe: of the quantization; None for the float model itself.
    """

    engine: str
    precision: Precision = "fp32"
    recipe: Recipe | None = None

    @property
    def name(self) -> str:
        """Short, for tables; `key` tells variants apart for certain."""
        if self.recipe is None:
            return self.precision
        parts = ["int8" if self.precision == "fp32" else f"int8+{self.precision}", str(self.recipe.method)]
        if self.recipe.migration is not None and self.recipe.rules.rescales_channels:
            parts.append(f"migration {self.recipe.migration:g}")
        if not self.recipe.corrects_bias:
            parts.append("bias left")
        if self.recipe.equalizes:
            parts.append("equalized")
        if self.recipe.quantizes_predictions:
            parts.append("predictions too")
        parts += [name.replace("_", " ") for name in self.recipe.repairs]
        if self.recipe.fine_layers:
            parts.append(f"{len(self.recipe.fine_layers)} twice")
        if self.recipe.finest_layers:
            parts.append(f"{len(self.recipe.finest_layers)} thrice")
        if self.recipe.float_layers:
            parts.append(f"{len(self.recipe.float_layers)} layers float")
        return ", ".join(parts)

    def key(self) -> dict[str, object]:
        """All that it is, in JSON's types."""
        recipe = self.recipe
        return {
            "engine": self.engine,
            "precision": self.precision,
            "recipe": None
            if recipe is None
            else {
                "rules": repr(recipe.rules),
                "method": str(recipe.method),
                "float_layers": sorted(recipe.float_layers),
                "fine_layers": sorted(recipe.fine_layers),
                "finest_layers": sorted(recipe.finest_layers),
                "migration": recipe.migration,
                "corrects_bias": recipe.corrects_bias,
                "quantizes_predictions": recipe.quantizes_predictions,
                "repairs": list(recipe.repairs),
                **({"equalizes": True} if recipe.equalizes else {}),
            },
        }
