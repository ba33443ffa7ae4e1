"""One INT8 form without a search for a budget: with the ranges that agree best with the float model on a few images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from boxwright.calibration.candidate import Quantizer, observed_tensors
from boxwright.calibration.choice import prepare_choice
from boxwright.calibration.equalized import equalized_quantizer
from boxwright.calibration.evaluation import Evaluator
from boxwright.calibration.float_model import FloatModel
from boxwright.calibration.held_back import Progress, engine_to_measure
from boxwright.calibration.images import spread
from boxwright.calibration.methods import MethodInputs, MethodResult
from boxwright.calibration.ranges import RangeMethod
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.statistics import Statistics, collect_statistics
from boxwright.calibration.variant import Variant
from boxwright.core.placement import EngineRules, rules_for
from boxwright.data import Dataset

# Of the calibration images: that forms are compared on.
_NUM_IMAGES = 16
# Which is better hangs on the network: heavy tails (SiLU) want the second where maps between layers are integers.
_METHODS = (RangeMethod(), RangeMethod(kind="entropy"))


def quantize_plainly(
    inputs: MethodInputs, calibration: Dataset, method: RangeMethod | None, report: Progress
) -> MethodResult:
    """Quantize by our own ranges and placement, all layers but those that predict.

    Args:
        inputs: the model and the engine.
        calibration: the images.
        method: of the ranges; where None, that one of `_METHODS` is taken with which the detections agree best with the
            float model's, and where all maps are integers channels are equalised if they then agree better still.
        report: called with a phase, what is done of it and its size, after the first pass over the images, of which
            `inputs.on_progress` is told.
    """
    model, rules = inputs.model, rules_for(inputs.engine)
    recipe = Recipe(rules=rules, method=method or _METHODS[0])
    statistics = _collect(inputs, model, rules, inputs.on_progress)
    equalized = None
    if method is None:
        equalized = equalized_quantizer(
            model,
            [rules],
            inputs.batches,
            lambda other: _collect(
                inputs, other, rules, lambda done: report("calibrating, equalized", done, inputs.num_images)
            ),
        )
    quantizer = Quantizer(model, statistics, equalized=equalized)
    if method is None:
        recipe = _choose(inputs, calibration, quantizer, recipe, report)
    quantized = {layer.name for layer in quantizer.quantized(recipe)}
    return MethodResult(
        proto=quantizer.build(recipe),
        description=recipe.describe(),
        layers_in_float=tuple(layer.name for layer in model.layers if layer.name not in quantized),
    )


def _choose(
    inputs: MethodInputs, calibration: Dataset, quantizer: Quantizer, recipe: Recipe, report: Progress
) -> Recipe:
    part = calibration.with_samples(spread(calibration.samples, _NUM_IMAGES))
    with tempfile.TemporaryDirectory() as folder:
        choice = prepare_choice(part, None, inputs.model.manifest, inputs.model.proto, Path(folder))
        evaluator = Evaluator(inputs.model, quantizer, macs={})
        # TensorRT takes minutes for each form, and what is not installed cannot be asked.
        is_simulated = inputs.engine == "tensorrt" or engine_to_measure(inputs.engine) != inputs.engine

        found: dict[Recipe, float] = {}
        num_forms = len(_METHODS) + quantizer.can_equalize

        def agreement(candidate: Recipe) -> float:
            if candidate not in found:
                variant = Variant(engine=inputs.engine, recipe=candidate)
                found[candidate] = evaluator.evaluate(variant, choice, is_simulated=is_simulated).agreement.value
                report("choosing ranges", len(found), num_forms)
            return found[candidate]

        report("choosing ranges", 0, num_forms)
        best = max((replace(recipe, method=method) for method in _METHODS), key=agreement)
        if quantizer.can_equalize:
            best = max((best, replace(best, equalizes=True)), key=agreement)
    return best


def _collect(
    inputs: MethodInputs, model: FloatModel, rules: EngineRules, on_progress: Callable[[int], None]
) -> Statistics:
    return collect_statistics(
        model,
        ((arrays, count, 0) for arrays, count in inputs.batches()),
        tensors=observed_tensors(model, fused=rules.style == "fused"),
        on_progress=on_progress,
    )
