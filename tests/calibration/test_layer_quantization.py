"""Integer weights, their scales and the factors of channels, by value."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from boxwright.calibration.float_model import Layer
from boxwright.calibration.histograms import ChannelHistograms
from boxwright.calibration.layer_quantization import (
    InputQuantization,
    quantize_input,
    quantize_weights,
    quantize_weights_twice,
)
from boxwright.calibration.ranges import RangeMethod
from boxwright.calibration.recipe import Recipe
from boxwright.core.placement import rules_for

PLAIN = Recipe(rules=rules_for("onnxruntime"), method=RangeMethod(kind="minmax"), corrects_bias=False)
UNIT = InputQuantization(factors=None, scale=1.0, zero_point=0, activation_type="uint8")


def layer(weight: NDArray[np.float64], *, num_groups: int = 1) -> Layer:
    """A 1x1 convolution with these weights (O, I/G)."""
    kind = "depthwise" if num_groups > 1 else "dense"
    weights = weight.astype(np.float32)[:, :, None, None]
    return Layer(name="l", kind=kind, input_name="x", output_name="y", weight=weights, num_groups=num_groups)


def seen(*channels: list[float]) -> ChannelHistograms:
    histograms = ChannelHistograms(len(channels))
    histograms.add(np.array(channels, dtype=np.float32))
    return histograms


def test_each_output_channel_has_a_scale_of_its_own() -> None:
    weight = np.array([[127.0, -63.5, 0.4], [-0.0127, 0.00641, 0.0], [0.0, 0.0, 0.0]])
    found = quantize_weights(layer(weight), seen([1], [1], [1]), UNIT, PLAIN)
    np.testing.assert_allclose(found.scales, [1.0, 0.0001, 1.0], rtol=1e-6)
    # To even at the half; the channel of zeros stays zero.
    assert found.values[:, :, 0, 0].tolist() == [[127, -64, 0], [-127, 64, 0], [0, 0, 0]]
    assert not found.bias_change.any()


def test_random_weights_are_off_by_half_a_step_of_their_channel_at_most() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(size=(8, 30)) * np.geomspace(1e-4, 1e2, 8)[:, None]
    found = quantize_weights(layer(weight), seen(*[[1.0]] * 30), UNIT, PLAIN)
    assert np.abs(found.values).max(axis=(1, 2, 3)).tolist() == [127] * 8
    error = np.abs(found.values[:, :, 0, 0] * found.scales[:, None] - weight)
    assert (error <= 0.5001 * found.scales[:, None]).all()
    # With what rounding left over kept too, by 254 times less.
    twice = quantize_weights_twice(layer(weight), seen(*[[1.0]] * 30), UNIT, PLAIN)
    assert twice.fine_values is not None
    both = twice.values[:, :, 0, 0] * twice.scales[:, None] + twice.fine_values[:, :, 0, 0] * twice.fine_scales[:, None]
    assert (np.abs(both - weight) <= 0.51 * found.scales[:, None] / 254).all()


def test_a_range_becomes_a_scale_and_a_zero_point() -> None:
    histograms = seen([-1.0, 4.1])
    unsigned = quantize_input((), histograms, PLAIN)
    assert (unsigned.scale, unsigned.zero_point) == (pytest.approx(5.1 / 255), 50)
    signed = quantize_input((), histograms, Recipe(rules=rules_for("tensorrt"), method=PLAIN.method))
    assert (signed.scale, signed.zero_point) == (pytest.approx(4.1 / 127), 0)
    assert quantize_input((), seen([0.0, 0.0]), PLAIN).scale == 1.0


def test_factors_of_channels_go_into_the_weights_of_a_depthwise_layer() -> None:
    depthwise = layer(np.array([[1.0], [1.0], [2.0], [0.5]]), num_groups=4)
    histograms = seen([0, 1.0], [0, 10.0], [0, 0.5], [0, 4.0])
    recipe = Recipe(rules=rules_for("openvino"), method=PLAIN.method, corrects_bias=False)
    quantization = quantize_input([depthwise], histograms, recipe)
    assert quantization.factors is not None
    np.testing.assert_allclose(quantization.factors, [1, 10, 0.5, 4])
    assert quantization.scale == np.float32(1 / 255)  # all channels reach one now
    found = quantize_weights(depthwise, histograms, quantization, recipe)
    np.testing.assert_allclose(found.scales * 127, [1, 10, 1, 2], rtol=1e-6)
    assert found.values.ravel().tolist() == [127] * 4


def test_the_bias_takes_up_the_mean_error() -> None:
    dense = layer(np.array([[1.0, 1.0]]))
    # All values lie 0.4 of a step above the step that they are rounded to.
    histograms = seen([10.4] * 4, [20.4] * 4)
    recipe = Recipe(rules=PLAIN.rules, method=PLAIN.method, corrects_bias=True)
    found = quantize_weights(dense, histograms, UNIT, recipe)
    middles = histograms.means()
    assert found.bias_change[0] == np.float32((middles - np.round(middles)).sum())
