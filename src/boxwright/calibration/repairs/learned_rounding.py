"""Weights rounded so that the errors of one make up for those of another, layer by layer.

Rounding W (O, K) to W' costs E |(W' - W) x|^2 = tr((W' - W) H (W' - W)^T) at the output, where H is the covariance of
what the layer reads (its mean belongs to the bias). To the nearest is best where H is diagonal alone. Here the columns
are rounded one after another, those that are excited most first, and what rounding one of them does to the output is
made good by the columns that are still to come, which the inverse of H tells how. That is a direct solution of what
AdaRound searches by gradient, and takes seconds. A layer's new weights are kept where they do better on images that
had no part in H.

Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020 (the objective); Frantar
et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers, ICLR 2023, sec. 3 (the order
of one column after another, and the Cholesky factor of the inverse).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from boxwright.calibration.float_model import FloatModel, Layer
from boxwright.calibration.histograms import DoubleArray
from boxwright.calibration.input_columns import Geometry, geometry_of, sample_columns
from boxwright.calibration.layer_quantization import InputQuantization, find_bias_change, scaled_weight
from boxwright.calibration.qdq import QuantizedLayer
from boxwright.calibration.repairs import QuantizedLayers, Repair, RepairContext
from boxwright.calibration.sessions import open_session, with_outputs
from boxwright.core.boxes import FloatArray

_LARGEST_WEIGHT = 127
_POSITIONS_AN_IMAGE = 128
# One image of so many is kept to judge by.
_JUDGING = 4
# Added to H's diagonal, as a part of its mean: directions that the images did not show shall not be used.
_DAMPING = 0.05
# Larger layers are left alone: (K, K) matrices of this many bytes are all that is held at a time.
_MOST_BYTES = 256 * 2**20
# With fewer images than that a matrix says little.
_FEWEST_IMAGES = 8
# Measured on two cores: products of the network and of covariances, values drawn and rounded, what inverting a matrix
# of K x K takes by K^3, and changes of weights that are still to be rounded.
_PRODUCTS_A_SECOND, _VALUES_A_SECOND, _SOLVED_A_SECOND, _CHANGES_A_SECOND = 2e10, 5e7, 5e9, 4e8


@dataclass(kw_only=True, eq=False)
class _Covariance:
    """Sums over neighbourhoods: count, (G, K) and (G, K, K)."""

    shape: tuple[int, int]
    count: int = 0
    sums: DoubleArray = field(init=False)
    products: DoubleArray = field(init=False)

    def __post_init__(self) -> None:
        groups, size = self.shape
        self.sums = np.zeros((groups, size))
        self.products = np.zeros((groups, size, size))

    def add(self, columns: FloatArray) -> None:
        """Take in (G, K, n)."""
        self.count += columns.shape[2]
        self.sums += columns.sum(axis=2, dtype=np.float64)
        self.products += columns @ columns.transpose(0, 2, 1)

    def matrix(self) -> DoubleArray:
        """(G, K, K)."""
        means = self.sums / max(self.count, 1)
        result: DoubleArray = self.products / max(self.count, 1) - means[:, :, None] * means[:, None, :]
        return result


@dataclass(frozen=True, kw_only=True, eq=False)
class _Task:
    """A layer to be rounded anew, and what was seen of its input: to learn from, and to judge by."""

    quantized: QuantizedLayer
    geometry: Geometry
    learning: _Covariance
    judging: _Covariance


def run(layers: QuantizedLayers, context: RepairContext) -> dict[str, QuantizedLayer]:
    """Round the weights of all layers anew, as far as the work goes."""
    result = dict(layers)
    left = context.work
    an_image = sum(context.statistics.macs(layer) for layer in context.model.layers) / _PRODUCTS_A_SECOND
    nodes = {node.name: node for node in ir.from_proto(context.model.raw_proto).graph}
    for tasks in _pieces(layers.values(), nodes):
        left -= sum(_rounding_work(task) for task in tasks)
        work = an_image + sum(_observing_work(task) for task in tasks)
        most_images = int(left / work)
        if most_images < _FEWEST_IMAGES:
            break
        left -= work * _observe(tasks, context, most_images)
        for task in tasks:
            if task.learning.count and task.judging.count:
                result[task.quantized.layer.name or ""] = _round_anew(task, context)
    return result


def applies(model: FloatModel) -> bool:
    """Every model has weights to round."""
    return bool(model.layers)


def _pieces(layers: Iterable[QuantizedLayer], nodes: dict[str | None, ir.Node]) -> Iterator[list[_Task]]:
    """The layers in groups whose matrices fit into memory together; each group's are freed with it."""
    piece: list[_Task] = []
    used = 0
    for quantized in layers:
        layer = quantized.layer
        geometry = geometry_of(nodes[layer.name], layer)
        groups, size = layer.num_groups, int(np.prod(layer.weight.shape[1:]))
        needed = 2 * 8 * groups * size * size
        if geometry is None or needed > _MOST_BYTES:
            continue
        if used + needed > _MOST_BYTES:
            yield piece
            piece, used = [], 0
        shape = (groups, size)
        piece.append(
            _Task(
                quantized=quantized,
                geometry=geometry,
                learning=_Covariance(shape=shape),
                judging=_Covariance(shape=shape),
            )
        )
        used += needed
    yield piece


def _observing_work(task: _Task) -> float:
    """Seconds that an image costs, about."""
    groups, size = task.learning.shape
    values = _POSITIONS_AN_IMAGE * groups * size
    return values / _VALUES_A_SECOND + values * size / _PRODUCTS_A_SECOND


def _rounding_work(task: _Task) -> float:
    """Seconds that `round_columns` takes, about."""
    groups, size = task.learning.shape
    changes = task.quantized.layer.weight.size * size / 2
    return groups * size**3 / _SOLVED_A_SECOND + changes / _CHANGES_A_SECOND


def _observe(tasks: Sequence[_Task], context: RepairContext, most_images: int) -> int:
    """Run the float model and gather what the layers read, as their integers stand for it; of how many images."""
    names = list(dict.fromkeys(task.quantized.layer.input_name for task in tasks))
    session = open_session(with_outputs(context.model.raw_proto, names))
    computed = [output.name for output in session.get_outputs()]
    seen = 0
    for inputs, count in context.batches():
        if seen >= most_images:
            break
        arrays = dict(inputs) | dict(zip(computed, session.run(computed, dict(inputs)), strict=True))
        for position, task in enumerate(tasks):
            random = np.random.default_rng((seen, position))
            for index, activation in enumerate(arrays[task.quantized.layer.input_name][:count], start=seen):
                of_task = task.judging if index % _JUDGING == _JUDGING - 1 else task.learning
                columns = sample_columns(
                    _channels_first(activation, task.quantized.layer), task.geometry, _POSITIONS_AN_IMAGE, random
                )
                of_task.add(_grouped(_as_integers_stand(columns, task.quantized.input), task.quantized.layer))
        seen += count
    return seen


def _channels_first(activation: FloatArray, layer: Layer) -> FloatArray:
    """(C, H, W) of a convolution's input, (C, n) of a product's."""
    if layer.kind != "matmul":
        return activation
    return np.ascontiguousarray(activation.reshape(-1, activation.shape[-1]).T)


def _as_integers_stand(columns: FloatArray, quantization: InputQuantization) -> FloatArray:
    """Values (C, taps, n) divided by their factors, rounded and clipped."""
    if quantization.factors is not None:
        columns = columns / quantization.factors[:, None, None]
    low, high = quantization.bounds
    scale = np.float32(quantization.step)
    result: FloatArray = (np.round(np.clip(columns, low, high) / scale) * scale).astype(np.float32)
    return result


def _grouped(columns: FloatArray, layer: Layer) -> FloatArray:
    """(C, taps, n) to (G, C/G * taps, n)."""
    return columns.reshape(layer.num_groups, -1, columns.shape[2])


def _round_anew(task: _Task, context: RepairContext) -> QuantizedLayer:
    quantized = task.quantized
    layer, weight = quantized.layer, quantized.weight
    groups, size = layer.num_groups, task.learning.shape[1]
    exact = scaled_weight(layer, quantized.input.factors).reshape(groups, -1, size).astype(np.float64)  # (G, O/G, K)
    scales = weight.scales.reshape(groups, -1).astype(np.float64)
    before = weight.values.reshape(groups, -1, size).astype(np.float64)
    after = round_columns(exact / scales[:, :, None], task.learning.matrix())
    judged_by = task.judging.matrix()
    errors = [_output_error((values - exact / scales[:, :, None]) * scales[:, :, None], judged_by)
              for values in (before, after)]  # fmt: skip
    if errors[1] >= errors[0]:
        return quantized
    values = after.reshape(layer.weight.shape)
    change = weight.bias_change
    if context.recipe.corrects_bias:
        by_output = weight.scales.reshape(-1, *[1] * (layer.weight.ndim - 1))
        histograms = context.statistics.of(layer.input_name, context.leave_out)
        exact_weight = scaled_weight(layer, quantized.input.factors)
        rounded = (values * by_output).astype(np.float32)
        change = find_bias_change(layer, exact_weight, rounded, histograms, quantized.input)
    return replace(quantized, weight=replace(weight, values=values.astype(np.int8), bias_change=change))


def round_columns(weights: DoubleArray, covariance: DoubleArray) -> DoubleArray:
    """Round weights, given in steps, so that the output's error is small.

    Args:
        weights: (G, R, K) in steps of their scale.
        covariance: (G, K, K) of the inputs.

    Returns:
        (G, R, K) whole numbers from -127 to 127.
    """
    size = weights.shape[2]
    variances = np.einsum("gkk->gk", covariance)
    damping = _DAMPING * np.maximum(variances.mean(axis=1), 1e-12)
    damped = covariance + damping[:, None, None] * np.eye(size)
    order = np.argsort(-variances, axis=1, kind="stable")  # (G, K)
    damped = np.take_along_axis(np.take_along_axis(damped, order[:, :, None], axis=1), order[:, None, :], axis=2)
    left = np.take_along_axis(weights, order[:, None, :], axis=2).astype(np.float64)
    # The rows of the upper factor U of inv(H) = U^T U say how later columns make good for an earlier one.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    rounded = np.empty_like(left)
    for column in range(size):
        rounded[:, :, column] = np.clip(np.round(left[:, :, column]), -_LARGEST_WEIGHT, _LARGEST_WEIGHT)
        error = (left[:, :, column] - rounded[:, :, column]) / upper[:, None, column, column]  # (G, R)
        left[:, :, column + 1 :] -= error[:, :, None] * upper[:, None, column, column + 1 :]
    result = np.empty_like(rounded)
    np.put_along_axis(result, np.broadcast_to(order[:, None, :], result.shape), rounded, axis=2)
    return result


def _output_error(difference: DoubleArray, covariance: DoubleArray) -> float:
    """Mean squared error at the output, summed over the outputs, of a change of the weights (G, R, K)."""
    return float(np.einsum("grk,gkl,grl->", difference, covariance, difference, optimize=True))


REPAIR = Repair(cost=30, applies=applies, run=run)
