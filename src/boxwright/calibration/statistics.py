"""One pass of the calibration images through the float model: what its activations are like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from boxwright.calibration.float_model import FloatModel, Layer
from boxwright.calibration.histograms import ChannelHistograms
from boxwright.calibration.sessions import Tensors, channels_first, open_session, with_outputs
from boxwright.core.errors import InputError

# So many bytes of activations are held at a time; a heavy network is run in several pieces.
_MOST_ACTIVATION_BYTES = 256 * 2**20
# Values of a tensor that are counted of one image; the ends are found among all.
_MOST_VALUES_AN_IMAGE = 1 << 19


@dataclass(kw_only=True)
class Statistics:
    """What is known of the activations.

    Attributes:
        histograms: of each observed tensor, for each fold of the images.
        shapes: of each observed tensor and of each layer's output, for one image.
        num_images: in each fold.
    """

    histograms: dict[str, list[ChannelHistograms]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    num_images: list[int] = field(default_factory=list)

    def of(self, tensor: str, leave_out: int | None = None) -> ChannelHistograms:
        """The histograms of a tensor over all folds but the one left out."""
        folds = [fold for index, fold in enumerate(self.histograms[tensor]) if index != leave_out]
        total = folds[0]
        for fold in folds[1:]:
            total = total + fold
        return total

    def macs(self, layer: Layer) -> int:
        """Multiplications of a layer for one image."""
        shape = self.shapes[layer.output_name]
        positions = int(np.prod(shape[2:])) if layer.kind != "matmul" else int(np.prod(shape[1:-1]))
        return int(layer.weight.size) * positions


def collect_statistics(
    model: FloatModel,
    batches: Iterable[tuple[Tensors, int, int]],
    *,
    tensors: Mapping[str, int | None],
    num_folds: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> Statistics:
    """Run the float model and look at its activations.

    The raw heads and what the predicting layers are given are looked at too, for numbers that are not finite.

    Args:
        model: the float model.
        batches: inputs of the network, the number of images in them that count, and their fold.
        tensors: to observe: the axis of the channels by name, None where these are not to be told apart.
        num_folds: that the images are divided into.
        on_progress: called with the number of images done.

    Returns:
        The histograms of all tensors, fold by fold.

    Raises:
        InputError: where an activation is not finite.
    """
    statistics = Statistics(num_images=[0] * num_folds)
    checked = {name: None for name in _results(model) if name not in tensors}
    sessions: list[tuple[object, list[str]]] = []
    done = 0
    for inputs, count, fold in batches:
        if not sessions:
            sessions = open_pieces(model, inputs, {**tensors, **checked}, statistics)
        for name in tensors:
            if name in inputs:
                _observe(statistics, name, inputs[name][:count], tensors[name], fold, done)
        for session, names in sessions:
            outputs = session.run(names, dict(inputs))  # type: ignore[attr-defined]
            for name, array in zip(names, outputs, strict=True):
                if name in checked:
                    check_finite(name, array)
                else:
                    _observe(statistics, name, array[:count], tensors[name], fold, done)
        statistics.num_images[fold] += count
        done += count
        if on_progress is not None:
            on_progress(done)
    return statistics


def _results(model: FloatModel) -> list[str]:
    """The raw heads and what the layers that predict are given: NaN there spoils no range, and all detections."""
    return [*model.head_names, *(layer.input_name for layer in model.layers if layer.is_prediction)]


def check_finite(name: str, values: np.ndarray) -> None:
    """Raise `InputError` where an activation tensor holds NaN or infinity."""
    if not np.isfinite(values).all():
        raise InputError(
            f"activations {name!r}",
            expected="finite numbers in the float model",
            got="NaN or infinity",
            fix="mend the weights (was the training stable?), or export the model again",
        )


def _observe(statistics: Statistics, name: str, array: np.ndarray, axis: int | None, fold: int, offset: int) -> None:
    values = channels_first(array, axis)
    check_finite(name, values)
    if name not in statistics.histograms:
        num_folds = len(statistics.num_images)
        statistics.histograms[name] = [ChannelHistograms(len(values)) for _ in range(num_folds)]
    statistics.histograms[name][fold].add(values, most_values=_MOST_VALUES_AN_IMAGE, offset=offset)


def open_pieces(
    model: FloatModel, inputs: Tensors, tensors: Mapping[str, int | None], statistics: Statistics
) -> list[tuple[object, list[str]]]:
    """Sessions that give the tensors, each as many as the memory for activations allows; notes all shapes."""
    wanted = [*tensors, *(layer.output_name for layer in model.layers)]
    sizes = _measure_shapes(model, inputs, wanted, statistics)
    pieces: list[list[str]] = [[]]
    used = 0
    for name in tensors:
        if name in inputs:
            continue
        if used + sizes[name] > _MOST_ACTIVATION_BYTES and pieces[-1]:
            pieces.append([])
            used = 0
        pieces[-1].append(name)
        used += sizes[name]
    return [(open_session(with_outputs(model.raw_proto, names)), names) for names in pieces if names]


def _measure_shapes(model: FloatModel, inputs: Tensors, names: Sequence[str], statistics: Statistics) -> dict[str, int]:
    """Bytes of each tensor, from a run; a few tensors at a time, so that the memory stays bounded."""
    sizes: dict[str, int] = {}
    unique = [name for name in dict.fromkeys(names) if name not in inputs]
    for name in names:
        if name in inputs:
            statistics.shapes[name] = inputs[name].shape
    for start in range(0, len(unique), 32):
        part = unique[start : start + 32]
        session = open_session(with_outputs(model.raw_proto, part))
        for name, array in zip(part, session.run(part, dict(inputs)), strict=True):
            sizes[name] = array.nbytes
            statistics.shapes[name] = (1, *array.shape[1:])
    return sizes
