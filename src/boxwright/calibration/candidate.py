"""Making a quantized form of a float model after a recipe."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from boxwright.calibration.float_model import FloatModel, Layer
from boxwright.calibration.layer_quantization import InputQuantization, quantize_input, quantize_weights
from boxwright.calibration.qdq import QuantizedLayer, insert_qdq
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.statistics import Statistics


class Quantizer:
    """Makes quantized forms of one float model; what recipes have in common is computed once.

    Args:
        model: the float model.
        statistics: of its activations.
    """

    def __init__(self, model: FloatModel, statistics: Statistics) -> None:
        self._model = model
        self._statistics = statistics
        self._inputs: dict[tuple[object, ...], InputQuantization] = {}
        self._layers: dict[tuple[object, ...], QuantizedLayer] = {}

    @property
    def quantizable(self) -> tuple[Layer, ...]:
        """All layers but those whose results are the predictions."""
        return tuple(layer for layer in self._model.layers if not layer.is_prediction)

    def build(self, recipe: Recipe, *, raw: bool = False, leave_out: int | None = None) -> onnx.ModelProto:
        """The quantized model.

        Args:
            recipe: of the quantization.
            raw: up to the raw heads alone.
            leave_out: fold of images whose activations do not count.
        """
        proto = self._model.raw_proto if raw else self._model.proto
        model = ir.from_proto(proto)
        chosen = [layer for layer in self.quantizable if layer.name not in recipe.float_layers]
        insert_qdq(model, {layer.name: self._quantize(layer, recipe, leave_out) for layer in chosen})
        return ir.to_proto(model)

    def _quantize(self, layer: Layer, recipe: Recipe, leave_out: int | None) -> QuantizedLayer:
        settings = (recipe.rules, recipe.method, recipe.migration, recipe.corrects_bias, leave_out)
        key = (layer.name, *settings)
        if key not in self._layers:
            histograms = self._statistics.of(layer.input_name, leave_out)
            input_key = (layer.input_name, layer.kind, *settings)
            if input_key not in self._inputs:
                readers = [
                    other
                    for other in self.quantizable
                    if (other.input_name, other.kind) == (layer.input_name, layer.kind)
                ]
                self._inputs[input_key] = quantize_input(readers, histograms, recipe)
            quantization = self._inputs[input_key]
            self._layers[key] = QuantizedLayer(
                layer=layer, input=quantization, weight=quantize_weights(layer, histograms, quantization, recipe)
            )
        return self._layers[key]


def observed_tensors(model: FloatModel) -> dict[str, int]:
    """The tensors whose distribution a `Quantizer` needs, and the axis of their channels."""
    return {layer.input_name: layer.channel_axis for layer in model.layers if not layer.is_prediction}
