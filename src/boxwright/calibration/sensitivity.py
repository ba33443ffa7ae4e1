"""What each layer costs: the damage at the detections when it alone is quantized."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from boxwright.calibration.evaluation import Evaluation
from boxwright.calibration.float_model import Layer
from boxwright.calibration.variant import Variant


@dataclass(frozen=True, kw_only=True)
class LayerSensitivity:
    """The damage of one layer.

    Attributes:
        layer: its name.
        kind: `dense`, `depthwise` or `matmul`.
        damage: 1 - agreement with the float model's detections when no other layer is quantized.
        box_change: mean of 1 - IoU of partners then.
        score_change: mean change of sure scores then.
        macs: its multiplications for an image.
    """

    layer: str
    kind: str
    damage: float
    box_change: float
    score_change: float
    macs: int


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
        )
