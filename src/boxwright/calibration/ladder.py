"""From all in INT8 to all in float, step by step: what wins most for its price comes first.

Between INT8 and float lie two forms that stay on integers: a layer may read its input in two steps (twice the work),
and have its weights in two steps as well (three times). The first takes most of its error away, the second nearly all.
They let a form hold the budget with most of the work on integers where float would have to take over most of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from boxwright.calibration.float_model import Layer
from boxwright.calibration.recipe import Recipe

Form = Literal["int8", "fine", "finest", "float"]
# What is left of the error of a layer in plain INT8, a median over YOLOX-nano's layers on OpenVINO, and how often it is
# run more. Each next form wins less for its price.
_FINE_FORMS: tuple[tuple[Form, float, float], ...] = (("int8", 1.0, 0.0), ("fine", 0.25, 1.0), ("finest", 0.02, 2.0))
# A layer costs at least as much time as this part of all multiplications takes.
_LEAST_PRICE = 0.002


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A step: a layer takes a form."""

    layer: str
    form: Form


def float_ladder(layers: Sequence[Layer], harms: Mapping[str, float], macs: Mapping[str, int]) -> list[Rung]:
    """One layer after another returns to float, those first that do most harm for the multiplications they save."""
    least = _LEAST_PRICE * sum(macs.values())
    order = sorted(layers, key=lambda layer: harms[layer.name] / (macs[layer.name] + least), reverse=True)
    return [Rung(layer=layer.name, form="float") for layer in order]


def integer_ladder(
    layers: Sequence[Layer], harms: Mapping[str, float], macs: Mapping[str, int], *, least_share: float
) -> list[Rung]:
    """The same as long as a share of all multiplications stays on integers; then the others run several times.

    Depthwise layers return first: they are little work, which integers do no faster.
    """
    rungs = sorted(float_ladder(layers, harms, macs), key=lambda rung: not _is_depthwise(rung.layer, layers))
    left = sum(macs[layer.name] for layer in layers) - least_share * sum(macs.values())
    returned: list[Rung] = []
    for rung in rungs:
        if macs[rung.layer] <= left:
            left -= macs[rung.layer]
            returned.append(rung)
    names = {rung.layer for rung in returned}
    return returned + _finer([layer for layer in layers if layer.name not in names], harms, macs)


def climb(recipe: Recipe, rungs: Sequence[Rung]) -> Recipe:
    """The recipe after some steps from plain INT8."""
    forms = {rung.layer: rung.form for rung in rungs}

    def of(form: Form) -> frozenset[str]:
        return frozenset(layer for layer, own in forms.items() if own == form)

    return replace(recipe, float_layers=of("float"), fine_layers=of("fine"), finest_layers=of("finest"))


def _finer(layers: Sequence[Layer], harms: Mapping[str, float], macs: Mapping[str, int]) -> list[Rung]:
    least = _LEAST_PRICE * sum(macs.values())
    gains: list[tuple[float, Rung]] = []
    for layer in layers:
        for (_, error, price), (form, next_error, next_price) in itertools.pairwise(_FINE_FORMS):
            win = harms[layer.name] * (error - next_error)
            gains.append((win / ((next_price - price) * (macs[layer.name] + least)), Rung(layer=layer.name, form=form)))
    return [rung for _, rung in sorted(gains, key=lambda entry: entry[0], reverse=True)]


def _is_depthwise(name: str, layers: Sequence[Layer]) -> bool:
    return any(layer.name == name and layer.kind == "depthwise" for layer in layers)
