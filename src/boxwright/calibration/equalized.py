"""A quantizer of the model equalised across layers, beside that of the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from boxwright.calibration.candidate import Batches, Quantizer
from boxwright.calibration.equalization import equalize
from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.sessions import Tensors
from boxwright.calibration.statistics import Statistics
from boxwright.core.placement import EngineRules


def equalized_quantizer(
    model: FloatModel,
    rules: Sequence[EngineRules],
    batches: Callable[[], Iterator[tuple[Tensors, int]]],
    collect: Callable[[FloatModel], Statistics],
    again: Batches | None = None,
) -> Quantizer | None:
    """Where an engine has no factors for channels and a layer can be equalised, else None.

    Args:
        model: the float model.
        rules: of the engines.
        batches: makes the inputs that the factors come from.
        collect: gathers the statistics of a model, in another pass over the images.
        again: for repairs that look at images again, as `Quantizer` takes it.
    """
    if all(engine.rescales_channels for engine in rules):
        return None
    equalized = equalize(model, batches())
    return None if equalized is None else Quantizer(equalized, collect(equalized), again)
