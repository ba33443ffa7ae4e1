"""Repairs: what may win back accuracy that a quantization has cost. A file here is a repair; its name is its name.

A repair is tried in rising order of `cost` and kept only where the detections agree better with it than without.
What needs no data but the recipe (channel factors, migration, bias correction, layers in float) is part of `Recipe`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.qdq import QuantizedLayer
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.sessions import Tensors
from boxwright.calibration.statistics import Statistics

QuantizedLayers = Mapping[str, QuantizedLayer]


@dataclass(frozen=True, kw_only=True, eq=False)
class RepairContext:
    """What a repair may look at.

    Attributes:
        model: the float model.
        statistics: of its activations.
        recipe: that the layers were quantized after.
        batches: makes the network's inputs of the calibration images anew, with how many images count in each; the
            images of the fold left out are not among them.
        leave_out: fold of images that must have no part in it.
        work: that it may cost, in seconds of an idle machine of two cores by a count of its multiplications. Never by
            the clock: a busy machine must come to the same weights.
    """

    model: FloatModel
    statistics: Statistics
    recipe: Recipe
    batches: Callable[[], Iterator[tuple[Tensors, int]]]
    leave_out: int | None = None
    work: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Repair:
    """A repair of quantized layers.

    Attributes:
        cost: cheaper repairs are tried first.
        applies: whether a model has anything that it could mend.
        run: gives the layers anew, by name; those that it leaves alone may be the same objects.
    """

    cost: int
    applies: Callable[[FloatModel], bool]
    run: Callable[[QuantizedLayers, RepairContext], dict[str, QuantizedLayer]]


def repairs() -> dict[str, Repair]:
    """All repairs by name, in rising order of cost."""
    found: dict[str, Repair] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        found[info.name] = module.REPAIR
    return dict(sorted(found.items(), key=lambda entry: entry[1].cost))
