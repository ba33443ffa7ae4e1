"""Making a quantized form of a float model after a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import onnx
import onnx_ir as ir

from boxwright.calibration.float_model import FloatModel, Layer
from boxwright.calibration.layer_quantization import (
    InputQuantization,
    in_two_steps,
    quantize_input,
    quantize_weights,
    quantize_weights_twice,
)
from boxwright.calibration.qdq import QuantizedLayer, insert_qdq
from boxwright.calibration.qdq_fused import fused_tensors, insert_fused
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.repairs import RepairContext, repairs
from boxwright.calibration.sessions import Tensors
from boxwright.calibration.statistics import Statistics

# Of so many settings the numbers of all layers are kept: the four folds of one, in one step and in two.
_MOST_SETTINGS = 8
# Makes the network's inputs of the calibration images anew, those of a fold left out.
Batches = Callable[[int | None], Iterator[tuple[Tensors, int]]]


class Quantizer:
    """Makes quantized forms of one float model; what recipes have in common is computed once.

    Args:
        model: the float model.
        statistics: of its activations.
        batches: for the repairs that look at images again; None where no recipe names one.
        equalized: of the same model equalised across layers, for recipes that ask for that.
    """

    def __init__(
        self,
        model: FloatModel,
        statistics: Statistics,
        batches: Batches | None = None,
        equalized: Quantizer | None = None,
    ) -> None:
        self._model = model
        self._statistics = statistics
        self._batches = batches
        self._equalized = equalized
        self._inputs: dict[tuple[object, ...], InputQuantization] = {}
        self._layers: dict[tuple[object, ...], QuantizedLayer] = {}
        self._repaired: dict[tuple[object, ...], dict[str, QuantizedLayer]] = {}
        self._recent: list[tuple[object, ...]] = []

    @property
    def can_equalize(self) -> bool:
        """Whether recipes may ask for equalisation."""
        return self._equalized is not None

    def quantizable(self, recipe: Recipe) -> tuple[Layer, ...]:
        """The layers that a recipe may quantize: all but those whose results are the predictions, or these too."""
        return quantizable_layers(self._model, predictions=recipe.quantizes_predictions)

    def quantized(self, recipe: Recipe) -> tuple[Layer, ...]:
        """The layers that it does quantize."""
        return tuple(layer for layer in self.quantizable(recipe) if layer.name not in recipe.float_layers)

    def build(self, recipe: Recipe, *, raw: bool = False, leave_out: int | None = None) -> onnx.ModelProto:
        """The quantized model.

        Args:
            recipe: of the quantization.
            raw: up to the raw heads alone.
            leave_out: fold of images whose activations do not count.
        """
        if recipe.equalizes and self._equalized is not None:
            return self._equalized.build(recipe, raw=raw, leave_out=leave_out)
        proto = self._model.raw_proto if raw else self._model.proto
        model = ir.from_proto(proto)
        layers = self._numbers(recipe, leave_out)
        chosen = {layer.name: layers[layer.name] for layer in self.quantized(recipe)}
        if (recipe.fine_layers | recipe.finest_layers) & chosen.keys():
            fine = self._numbers(in_two_steps(recipe), leave_out, is_fine=True)
            chosen |= {name: fine[name] for name in recipe.fine_layers & chosen.keys()}
            chosen |= {
                name: self._with_fine_weights(fine[name], recipe, leave_out)
                for name in recipe.finest_layers & chosen.keys()
            }
        if recipe.rules.style == "fused":
            insert_fused(model, chosen, lambda tensor: self._quantize_tensor(tensor, recipe, leave_out))
        else:
            insert_qdq(model, chosen)
        return ir.to_proto(model)

    def _with_fine_weights(self, quantized: QuantizedLayer, recipe: Recipe, leave_out: int | None) -> QuantizedLayer:
        layer = quantized.layer
        histograms = self._statistics.of(layer.input_name, leave_out)
        return replace(quantized, weight=quantize_weights_twice(layer, histograms, quantized.input, recipe))

    def _numbers(self, recipe: Recipe, leave_out: int | None, *, is_fine: bool = False) -> dict[str, QuantizedLayer]:
        """Of all quantizable layers, also of those that stay in float: which these are must not change the others."""
        settings = self._settings(recipe, leave_out, is_fine)
        self._forget_all_but(settings)
        layers = {layer.name: self._quantize(layer, recipe, leave_out, is_fine) for layer in self.quantizable(recipe)}
        if not recipe.repairs:
            return layers
        key = (recipe.repairs, *settings)
        if key not in self._repaired:
            self._repaired[key] = self._repair(layers, recipe, leave_out)
        return self._repaired[key]

    def _forget_all_but(self, settings: tuple[object, ...]) -> None:
        """Drop the numbers of settings that were not asked for lately: those of a heavy network fill the memory."""
        if settings not in self._recent:
            self._recent.append(settings)
        while len(self._recent) > _MOST_SETTINGS:
            oldest = self._recent.pop(0)
            for known in (self._inputs, self._layers, self._repaired):
                for key in [key for key in known if _is_of(key, oldest)]:
                    del known[key]

    def _repair(
        self, layers: dict[str, QuantizedLayer], recipe: Recipe, leave_out: int | None
    ) -> dict[str, QuantizedLayer]:
        assert self._batches is not None
        make_batches = self._batches
        context = RepairContext(
            model=self._model,
            statistics=self._statistics,
            recipe=recipe,
            batches=lambda: make_batches(leave_out),
            leave_out=leave_out,
        )
        known = repairs()
        for name in recipe.repairs:
            layers = known[name].run(layers, context)
        return layers

    def _quantize(self, layer: Layer, recipe: Recipe, leave_out: int | None, is_fine: bool) -> QuantizedLayer:
        settings = self._settings(recipe, leave_out, is_fine)
        key = (layer.name, *settings)
        if key not in self._layers:
            histograms = self._statistics.of(layer.input_name, leave_out)
            input_key = (layer.input_name, layer.kind, *settings)
            if input_key not in self._inputs:
                readers = [
                    other
                    for other in self.quantizable(recipe)
                    if (other.input_name, other.kind) == (layer.input_name, layer.kind)
                ]
                self._inputs[input_key] = quantize_input(readers, histograms, recipe, is_fine=is_fine)
            quantization = self._inputs[input_key]
            self._layers[key] = QuantizedLayer(
                layer=layer, input=quantization, weight=quantize_weights(layer, histograms, quantization, recipe)
            )
        return self._layers[key]

    def _quantize_tensor(self, tensor: str, recipe: Recipe, leave_out: int | None) -> InputQuantization:
        """Scale and zero point of a tensor between two layers."""
        key = (tensor, "tensor", *self._settings(recipe, leave_out))
        if key not in self._inputs:
            self._inputs[key] = quantize_input((), self._statistics.of(tensor, leave_out), recipe)
        return self._inputs[key]

    def _settings(self, recipe: Recipe, leave_out: int | None, is_fine: bool = False) -> tuple[object, ...]:
        # With predictions a tensor may have more readers, whose weights have a say in its factors.
        return (
            recipe.rules,
            recipe.method,
            recipe.migration,
            recipe.corrects_bias,
            recipe.quantizes_predictions,
            is_fine,
            leave_out,
        )


def _is_of(key: tuple[object, ...], settings: tuple[object, ...]) -> bool:
    """Whether something that is known belongs to these settings, which its key ends with."""
    return key[len(key) - len(settings) :] == settings


def quantizable_layers(model: FloatModel, *, predictions: bool) -> tuple[Layer, ...]:
    """The layers of a model that may be quantized."""
    return tuple(layer for layer in model.layers if predictions or not layer.is_prediction)


def observed_tensors(model: FloatModel, *, fused: bool = True, predictions: bool = False) -> dict[str, int | None]:
    """The tensors whose distribution a `Quantizer` needs, and the axis of their channels.

    Args:
        model: the float model.
        fused: whether recipes of the style `fused` will be asked for, which quantize what lies between layers too;
            there no channel needs a histogram of its own, which would take the most memory of all.
        predictions: whether recipes that quantize predictions will be.
    """
    found: dict[str, int | None] = dict.fromkeys(fused_tensors(model)) if fused else {}
    found |= {layer.input_name: layer.channel_axis for layer in quantizable_layers(model, predictions=predictions)}
    return found
