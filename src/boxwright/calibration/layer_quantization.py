"""Numbers of a quantized layer: its input's scale and zero point, its integer weights, and its corrected bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from boxwright.calibration.float_model import Layer
from boxwright.calibration.histograms import BIN_MIDDLES, BIN_WIDTHS, ChannelHistograms, DoubleArray
from boxwright.calibration.ranges import RangeMethod, choose_range
from boxwright.calibration.recipe import Recipe
from boxwright.core.boxes import FloatArray
from boxwright.core.placement import ActivationType

# Weights are symmetric, so that engines need no correction for their zero point.
_LARGEST_WEIGHT = 127
# A quiet channel is amplified by at most this much against the loudest.
_LARGEST_AMPLIFICATION = 1000.0
_CHANNEL_QUANTILE = 0.9999
# The second step covers one of the first to either side.
_FINE_STEPS = 127
# In two steps there is room for images that go beyond the range seen.
_FINE_HEADROOM = 2.0
_FINE_MIGRATION = 0.3


@dataclass(frozen=True, kw_only=True, eq=False)
class InputQuantization:
    """How an activation tensor becomes integers: round(x / factors / scale) + zero_point.

    In two steps, what that leaves over becomes integers too, of a scale that is finer by as much as these can tell:
    the layer runs twice and the results are added, which is as good as 16 bits on hardware that knows 8.

    Attributes:
        factors: (C,) float32, or None for ones.
        scale: of the divided tensor.
        zero_point: in the range of the type.
        activation_type: of the integers.
        fine_scale: of the second step; None where there is one step.
    """

    factors: FloatArray | None
    scale: float
    zero_point: int
    activation_type: ActivationType
    fine_scale: float | None = None

    @property
    def step(self) -> float:
        """By what two values must differ to be told apart."""
        return self.scale if self.fine_scale is None else self.fine_scale

    @property
    def bounds(self) -> tuple[float, float]:
        """What the integers span, after the division by the factors."""
        lowest, highest = (0, 255) if self.activation_type == "uint8" else (-127, 127)
        return (lowest - self.zero_point) * self.scale, (highest - self.zero_point) * self.scale


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightQuantization:
    """Integer weights of a layer, and what its bias must change by.

    Attributes:
        values: int8, in the shape of `Layer.weight`.
        scales: (O,) float32.
        bias_change: (O,) float32.
        fine_values: int8, what rounding left over in steps of `fine_scales`; None where that is let go.
    """

    values: NDArray[np.int8]
    scales: FloatArray
    bias_change: FloatArray
    fine_values: NDArray[np.int8] | None = None

    @property
    def fine_scales(self) -> FloatArray:
        """(O,) of what is left over, which is at most half a step."""
        result: FloatArray = self.scales / np.float32(2 * _LARGEST_WEIGHT)
        return result


def in_two_steps(recipe: Recipe) -> Recipe:
    """The same recipe for inputs in two steps: nothing need be clipped, and the weights alone are left to be eased."""
    return replace(recipe, method=RangeMethod(kind="minmax"), migration=_FINE_MIGRATION)


def quantize_input(
    layers: Sequence[Layer], histograms: ChannelHistograms, recipe: Recipe, *, is_fine: bool = False
) -> InputQuantization:
    """Choose the scale of a tensor for the layers of one kind that read it.

    Args:
        layers: all of them, also those that stay in float, so that the choice does not hang on which do.
        histograms: of the tensor.
        recipe: of the quantization.
        is_fine: whether in two steps, for which the recipe should be one of `in_two_steps`.
    """
    factors = _channel_factors(layers, histograms, recipe)
    low, high = choose_range(histograms.distribution(factors), recipe.method)
    if is_fine:
        low, high = _FINE_HEADROOM * low, _FINE_HEADROOM * high
    kind = recipe.rules.activation_type
    if kind == "int8":
        scale, zero_point = max(-low, high) / 127, 0
    else:
        scale = (high - low) / 255
        zero_point = round(-low / scale) if scale > 0 else 0
    # A tensor that was always zero needs some scale.
    scale = float(np.float32(scale)) if scale > 1e-12 else 1.0
    return InputQuantization(
        factors=None if factors is None else factors.astype(np.float32),
        scale=scale,
        zero_point=zero_point,
        activation_type=kind,
        fine_scale=float(np.float32(scale / _FINE_STEPS)) if is_fine else None,
    )


def quantize_weights(
    layer: Layer, histograms: ChannelHistograms, quantization: InputQuantization, recipe: Recipe
) -> WeightQuantization:
    """Round a layer's weights, with a scale for each output channel.

    Args:
        layer: to be quantized.
        histograms: of its input.
        quantization: of its input, whose factors the weights take up.
        recipe: of the quantization.
    """
    weight = scaled_weight(layer, quantization.factors)  # (O, ...)
    values, scales = round_weights(weight)
    change = np.zeros(len(weight), dtype=np.float32)
    if recipe.corrects_bias:
        rounded = values * scales.reshape(-1, *[1] * (weight.ndim - 1))
        change = find_bias_change(layer, weight, rounded, histograms, quantization)
    return WeightQuantization(values=values, scales=scales, bias_change=change)


def round_weights(weight: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """To the nearest of 127 steps to either side of zero: integers (O, ...), and the scale of each output channel (O,).

    Args:
        weight: (O, ...) float32.
    """
    scales = np.abs(weight.reshape(len(weight), -1)).max(axis=1) / _LARGEST_WEIGHT
    scales = np.where(scales > 1e-20, scales, 1.0).astype(np.float32)
    by_output = scales.reshape(-1, *[1] * (weight.ndim - 1))
    values = np.clip(np.round(weight / by_output), -_LARGEST_WEIGHT, _LARGEST_WEIGHT)
    return values.astype(np.int8), scales


def quantize_weights_twice(
    layer: Layer, histograms: ChannelHistograms, quantization: InputQuantization, recipe: Recipe
) -> WeightQuantization:
    """Round a layer's weights, and what that leaves over too; arguments as of `quantize_weights`."""
    once = quantize_weights(layer, histograms, quantization, recipe)
    weight = scaled_weight(layer, quantization.factors)
    by_output = (-1, *[1] * (weight.ndim - 1))
    rest = (weight - once.values * once.scales.reshape(by_output)) / once.fine_scales.reshape(by_output)
    change = np.zeros(len(weight), dtype=np.float32)
    if recipe.corrects_bias:
        change = find_bias_change(layer, weight, weight, histograms, quantization)
    fine = np.clip(np.round(rest), -_LARGEST_WEIGHT, _LARGEST_WEIGHT).astype(np.int8)
    return replace(once, bias_change=change, fine_values=fine)


def scaled_weight(layer: Layer, factors: FloatArray | None) -> FloatArray:
    """The weights that give the same result on an input divided by `factors` (C,)."""
    if factors is None:
        return layer.weight
    # (G, 1, I/G) against weights (G, O/G, I/G, ...)
    by_group = factors.reshape(layer.num_groups, 1, -1)
    grouped = layer.weight.reshape(layer.num_groups, -1, *layer.weight.shape[1:])
    scaled = grouped * by_group.reshape(*by_group.shape, *[1] * (layer.weight.ndim - 2))
    result: FloatArray = scaled.reshape(layer.weight.shape).astype(np.float32)
    return result


def mean_error(histograms: ChannelHistograms, quantization: InputQuantization) -> DoubleArray:
    """Mean of what quantizing adds to each channel of the divided tensor, (C,)."""
    channels, bins = np.nonzero(histograms.counts)
    divisors = np.ones(histograms.num_channels) if quantization.factors is None else quantization.factors
    middles = BIN_MIDDLES[bins] / divisors[channels]
    widths = BIN_WIDTHS[bins] / divisors[channels]
    low, high = quantization.bounds
    clipped = np.clip(middles, low, high)
    # Rounding errors within a bin wider than a step cancel out; those of narrower bins are as at their middle.
    rounded = np.round(clipped / quantization.step) * quantization.step
    errors = np.where(widths > quantization.step, clipped, rounded) - middles
    masses = histograms.counts[channels, bins].astype(np.float64)
    sums = np.bincount(channels, weights=errors * masses, minlength=histograms.num_channels)
    result: DoubleArray = sums / np.maximum(histograms.counts.sum(axis=1, dtype=np.float64), 1)
    return result


def _channel_factors(layers: Sequence[Layer], histograms: ChannelHistograms, recipe: Recipe) -> DoubleArray | None:
    """By what each channel is divided before it is quantized, or None."""
    if not layers or histograms.num_channels < 4:
        return None
    rules = recipe.rules
    if not (rules.rescales_products if layers[0].kind == "matmul" else rules.rescales_channels):
        return None
    found = histograms.magnitudes(_CHANNEL_QUANTILE)
    magnitudes: DoubleArray = np.maximum(found, max(found.max(), 1e-12) / _LARGEST_AMPLIFICATION)
    if layers[0].kind == "depthwise":
        return magnitudes
    if recipe.migration is None:
        return None
    # Source: Xiao et al., SmoothQuant, ICML 2023, eq. 4.
    weights = np.max([_weight_magnitudes(layer) for layer in layers], axis=0)
    weights = np.maximum(weights, max(weights.max(), 1e-12) / _LARGEST_AMPLIFICATION)
    factors = magnitudes**recipe.migration / weights ** (1 - recipe.migration)
    result: DoubleArray = factors / np.exp(np.log(factors).mean())
    return result


def _weight_magnitudes(layer: Layer) -> DoubleArray:
    """Largest weight on each input channel, (C,)."""
    grouped = np.abs(layer.weight).reshape(layer.num_groups, -1, layer.weight.shape[1], *layer.weight.shape[2:])
    axes = (1, *range(3, grouped.ndim))
    result: DoubleArray = grouped.max(axis=axes).reshape(-1).astype(np.float64)
    return result


def find_bias_change(
    layer: Layer,
    weight: FloatArray,
    rounded_weight: FloatArray,
    histograms: ChannelHistograms,
    quantization: InputQuantization,
) -> FloatArray:
    """Mean of the output that was, less the mean that is, (O,): W E[x] - W' E[x'], borders taken for the inside.

    Source: Nagel et al., Data-Free Quantization through Weight Equalization and Bias Correction, ICCV 2019, sec. 4.2.
    """
    means = histograms.means()
    if quantization.factors is not None:
        means = means / quantization.factors
    quantized_means = means + mean_error(histograms, quantization)
    change = _mean_output(layer, weight, means) - _mean_output(layer, rounded_weight, quantized_means)
    return change.astype(np.float32)


def _mean_output(layer: Layer, weight: FloatArray, means: DoubleArray) -> DoubleArray:
    taps = weight.reshape(layer.num_groups, -1, weight.shape[1], int(np.prod(weight.shape[2:]))).sum(axis=3)
    by_group = means.reshape(layer.num_groups, -1, 1)  # (G, I/G, 1)
    result: DoubleArray = (taps.astype(np.float64) @ by_group).reshape(-1)
    return result
