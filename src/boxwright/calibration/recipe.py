"""A recipe: everything that tells one quantized form of a model from another."""

from __future__ import annotations

from dataclasses import dataclass, field

from boxwright.calibration.ranges import RangeMethod
from boxwright.core.placement import PORTABLE, EngineRules


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a float model is quantized.

    Attributes:
        rules: of the engine that it is for.
        method: of the activations' ranges.
        float_layers: names of the layers that stay in float.
        fine_layers: names of those whose input is quantized in two steps, see `InputQuantization`.
        finest_layers: names of those whose weights are too.
        migration: exponent with which a channel's magnitude moves from the activations into the weights of dense
            layers and products, 0 to 1; None leaves them. Depthwise layers take all of it where the engine rescales
            channels: there it costs the weights nothing.
        corrects_bias: whether the mean error of each layer's output is taken off its bias.
        equalizes: whether the float model is equalised across layers first.
        quantizes_predictions: whether the layers whose results are the predictions may be quantized too.
        repairs: names of repairs that are run on the quantized layers, in this order.
    """

    rules: EngineRules = PORTABLE
    method: RangeMethod = field(default_factory=RangeMethod)
    float_layers: frozenset[str] = frozenset()
    fine_layers: frozenset[str] = frozenset()
    finest_layers: frozenset[str] = frozenset()
    migration: float | None = 0.5
    corrects_bias: bool = True
    equalizes: bool = False
    quantizes_predictions: bool = False
    repairs: tuple[str, ...] = ()

    def describe(self) -> str:
        """One line for reports and the manifest."""
        parts = [str(self.method)]
        if self.rules.rescales_channels:
            parts.append("depthwise inputs scaled by channel")
            if self.migration is not None:
                parts.append(f"migration {self.migration:g}")
        if self.corrects_bias:
            parts.append("bias corrected")
        if self.fine_layers or self.finest_layers:
            parts.append(f"{len(self.fine_layers)} layers run twice, {len(self.finest_layers)} three times")
        if self.equalizes:
            parts.append("equalized across layers")
        if self.quantizes_predictions:
            parts.append("predictions too")
        parts += [name.replace("_", " ") for name in self.repairs]
        return ", ".join(parts)
