"""What each layer costs: the damage at the detections when it alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from boxwright.calibration.evaluation import Evaluation
from boxwright.calibration.float_model import Layer
from boxwright.calibration.variant import Variant

# Of a single layer; more says that the rows compared are not the same.
_LOST = 0.3


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """The damage of one layer.

    Attributes:
        layer: its name.
        kind: `dense`, `depthwise` or `matmul`.
        damage: 1 - agreement with the float model's detections when no other layer is quantized.
        box_change: mean of 1 - IoU of partners then.
        score_change: mean change of sure scores then.
        noise: mean squared error before NMS then, see `head_noise`; None where unknown.
        macs: its multiplications for an image.
    """

    layer: str
    kind: str
    damage: float
    box_change: float
    score_change: float
    macs: int
    noise: float | None = None


def measure_sensitivity(
    variant: Variant,
    layers: Sequence[Layer],
    *,
    evaluate: Callable[[Variant], Evaluation],
    macs: Callable[[Layer], int],
) -> Iterator[LayerSensitivity]:
    """Quantize each layer alone and look at the detections.

    Args:
        variant: how layers are quantized; its own float layers do not count.
        layers: that may be quantized.
        evaluate: measures a variant.
        macs: multiplications of a layer.

    Yields:
        One entry a layer, in their order.
    """
    assert variant.recipe is not None
    names = frozenset(layer.name for layer in layers)
    for layer in layers:
        recipe = replace(variant.recipe, float_layers=names - {layer.name})
        result = evaluate(replace(variant, recipe=recipe))
        yield LayerSensitivity(
            layer=layer.name,
            kind=layer.kind,
            damage=1 - result.agreement.value,
            box_change=result.agreement.box_change,
            score_change=result.agreement.score_change,
            macs=macs(layer),
            noise=result.head_noise,
        )


def harm_of_layers(found: Sequence[LayerSensitivity], layers: Sequence[Layer]) -> dict[str, float]:
    """What each layer adds to the error, by name; errors of different layers are as good as independent, so squares.

    A layer that there was no time for is taken for a middling one of its kind.
    """
    noises = [entry.noise for entry in found if entry.noise is not None]
    # Where rows of the heads change places (proposals, the best queries), nothing but the detections can be compared.
    by_noise = len(noises) == len(found) and max(noises, default=1.0) < _LOST
    harms = {entry.layer: entry.noise if by_noise and entry.noise else entry.damage**2 for entry in found}
    by_kind: dict[str, list[float]] = {}
    for entry in found:
        by_kind.setdefault(entry.kind, []).append(harms[entry.layer])
    return {layer.name: harms.get(layer.name, float(np.median(by_kind.get(layer.kind, [0.0])))) for layer in layers}
