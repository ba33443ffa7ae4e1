"""The search for the fastest INT8 form of a model on one engine that loses no more than the budget.

Ranges are swept first, then cheap repairs, all ranked by agreement. Then each layer's damage is measured, and the most
harmful for what they win are returned to float, as few as the budget allows. What may be chosen is measured in full:
difference in mAP with its interval, and time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from boxwright.calibration.bounded_evaluation import BoundedEvaluator, EnoughTimeError, TimeIsUpError
from boxwright.calibration.budget import Budget
from boxwright.calibration.candidate import Quantizer
from boxwright.calibration.choice import ChoiceSet
from boxwright.calibration.engines import other_precisions
from boxwright.calibration.evaluation import Evaluation, Evaluator
from boxwright.calibration.evaluation_store import EvaluationStore
from boxwright.calibration.ladder import Rung, climb, float_ladder, integer_ladder
from boxwright.calibration.ranges import RangeMethod
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.repairs import repairs
from boxwright.calibration.search_result import SearchResult, Step, Trial
from boxwright.calibration.sensitivity import harm_of_layers, measure_sensitivity
from boxwright.calibration.variant import Variant
from boxwright.core.errors import ModelFileError, UnsupportedError
from boxwright.core.placement import rules_for

Progress = Callable[[str, int, int], None]
# Images that candidates are ranked on, by the milliseconds of one; what may be chosen is measured on all.
_RANKING_IMAGES = ((100.0, 20), (300.0, 12), (float("inf"), 6))
# Each layer's damage is measured on no more than these: there are many layers.
_SENSITIVITY_IMAGES = 12
# Of the time that is left when they begin.
_SENSITIVITY_SHARE = 0.6
# Where the layers that predict hold more of the multiplications, INT8 is tried for them too.
_HEAVY_PREDICTIONS = 0.05
_METHODS = (
    RangeMethod(kind="minmax"),
    RangeMethod(percentile=99.999),
    RangeMethod(percentile=99.99),
    RangeMethod(percentile=99.95),
    RangeMethod(percentile=99.9),
    RangeMethod(kind="entropy"),
    RangeMethod(kind="mse"),
)
_MIGRATIONS = (0.3, 0.7, None)
_MOST_EXTENSIONS = 6
# As a rule: repairs that are tried, and candidates that are measured in full after that.
_USUAL_REPAIRS, _USUAL_CANDIDATES = 6, 9
# Few images may flatter: on these a form must keep within this part of the budget.
_RANKING_MARGIN = 0.85


class Search:
    """Searches on one engine.

    Args:
        engine: its name.
        evaluator: measures variants.
        quantizer: that the evaluator uses.
        choice: images to measure on.
        budget: to be held.
        macs: multiplications of each layer.
        store: of what is known already.
        on_progress: called with a phase, what is done of it and its size.
    """

    def __init__(
        self,
        engine: str,
        *,
        evaluator: Evaluator,
        quantizer: Quantizer,
        choice: ChoiceSet,
        budget: Budget,
        macs: Mapping[str, int],
        store: EvaluationStore,
        on_progress: Progress,
    ) -> None:
        self._engine = engine
        self._model = evaluator.model
        self._known = BoundedEvaluator(evaluator, store)
        self._quantizer = quantizer
        self._layers = quantizer.quantizable(Recipe())
        self._choice = choice
        self._part = choice.part(_RANKING_IMAGES[0][1])
        self._budget = budget
        self._macs = macs
        self._on_progress = on_progress
        self.result = SearchResult(engine=engine)

    def seconds_left(self) -> float:
        """Of the search, about; 0 before the first measurement."""
        return min(self._known.forecast.seconds_left, max(0.0, self._known.deadline - time.monotonic()))

    def run(self, *, deadline: float) -> SearchResult:
        """Search until the end or the deadline, of `time.monotonic`."""
        self._known.deadline = deadline
        try:
            self._search()
        except TimeIsUpError:
            self.result.time_is_up = True
        return self.result

    def try_form_of_other(self, variant: Variant, *, deadline: float) -> None:
        """Measure on this engine what was chosen for another, where the time allows and the engine takes it."""
        self._known.deadline = deadline
        with contextlib.suppress(TimeIsUpError, ModelFileError, UnsupportedError):
            self._try(Variant(engine=self._engine, recipe=variant.recipe))

    def _progress(self, phase: str, done: int, total: int) -> None:
        self._on_progress(f"{self._engine}: {phase}", done, total)

    def _foretell(self) -> None:
        """Tell the forecast how many measurements are to come after those of the float forms, about."""
        part, num_layers = len(self._part.samples), len(self._layers)
        ranking = len(_METHODS) + _USUAL_REPAIRS + num_layers.bit_length()
        self._known.forecast.expect("full", 1 + _USUAL_CANDIDATES, num_images=len(self._choice.samples))
        self._known.forecast.expect("ranking", ranking, num_images=part)
        self._known.forecast.expect("layer", num_layers, num_images=min(part, _SENSITIVITY_IMAGES))

    def _search(self) -> None:
        self._try_float_forms()
        float_ms = self.result.trials[0].latency_ms
        self._part = self._choice.part(next(count for most_ms, count in _RANKING_IMAGES if float_ms < most_ms))
        self._foretell()
        depthwise = frozenset(layer.name for layer in self._layers if layer.kind == "depthwise")
        start = Recipe(rules=rules_for(self._engine), float_layers=depthwise)
        recipe = self._improve(
            "ranges", start, [replace(start, method=method) for method in _METHODS if method != start.method]
        )
        recipe = self._improve("cheap repairs", recipe, self._cheap_repairs(recipe))
        self._try(Variant(engine=self._engine, recipe=recipe))  # so that there is one, should the time be up
        harms = self._harms(replace(recipe, float_layers=frozenset()))
        for name in self._worthwhile_repairs():
            recipe = self._improve(
                f"repair {name.replace('_', ' ')}", recipe, [replace(recipe, repairs=(*recipe.repairs, name))]
            )
        if recipe.rules.style == "inputs" and recipe.rules.wanted_share:
            # Only there may a layer run several times, and only where few may return to float must it.
            ladder = integer_ladder(self._layers, harms, self._macs, least_share=recipe.rules.wanted_share)
            self._climb(recipe, ladder, explores=False)
        self._climb(recipe, float_ladder(self._layers, harms, self._macs), explores=True)

    def _try_float_forms(self) -> None:
        precisions = ("fp32", *other_precisions(self._engine))
        for index, precision in enumerate(precisions):
            try:
                self._try(Variant(engine=self._engine, precision=precision))
            except UnsupportedError:  # this machine lacks it
                continue
            finally:
                self._progress("float forms", index + 1, len(precisions))

    def _cheap_repairs(self, recipe: Recipe) -> list[Recipe]:
        changed = [replace(recipe, corrects_bias=not recipe.corrects_bias)]
        has_products = any(layer.kind == "matmul" for layer in self._layers)
        if recipe.rules.rescales_channels or (recipe.rules.rescales_products and has_products):
            changed += [replace(recipe, migration=migration) for migration in _MIGRATIONS]
        if recipe.rules.style == "fused" and self._quantizer.can_equalize:
            changed.append(replace(recipe, equalizes=True))
        return changed

    def _worthwhile_repairs(self) -> list[str]:
        return [name for name, repair in repairs().items() if repair.applies(self._model)]

    def _improve(self, what: str, recipe: Recipe, others: list[Recipe]) -> Recipe:
        """The recipe among these that agrees best with the float model."""
        best, best_value = recipe, self._rank(recipe).agreement.value
        for index, other in enumerate(others):
            started = time.monotonic()
            value = self._rank(other).agreement.value
            step = Step(
                what=what,
                tried=Variant(engine=self._engine, recipe=other).name,
                agreement_before=best_value,
                agreement_after=value,
                kept=value > best_value,
                seconds=time.monotonic() - started,
            )
            self.result.steps.append(step)
            if value > best_value:
                best, best_value = other, value
            self._progress(what, index + 1, len(others))
        return best

    def _harms(self, recipe: Recipe) -> dict[str, float]:
        """What each layer adds to the error."""
        found = self.result.sensitivities
        part = self._part.part(_SENSITIVITY_IMAGES)
        now = time.monotonic()
        enough = now + _SENSITIVITY_SHARE * (self._known.deadline - now)
        measured = measure_sensitivity(
            Variant(engine=self._engine, recipe=recipe),
            self._layers,
            evaluate=lambda variant: self._known.evaluate(
                variant, part, is_simulated=True, enough=enough if found else None
            ),
            macs=lambda layer: self._macs[layer.name],
        )
        with contextlib.suppress(EnoughTimeError):
            for entry in measured:
                found.append(entry)
                self._progress("sensitivity of layers", len(found), len(self._layers))
        return harm_of_layers(found, self._layers)

    def _climb(self, recipe: Recipe, ladder: list[Rung], *, explores: bool) -> None:
        """Try forms that are ever nearer to float, narrow down where the budget begins to hold, and look around."""
        count = self._fewest_by_agreement(recipe, ladder)
        most = len(ladder) - 1  # one layer at least stays quantized
        tried: dict[int, Trial] = {}

        def attempt(size: int) -> Trial:
            if size not in tried:
                self._progress("candidates", len(tried), len(tried) + 3)
                tried[size] = self._try(self._after(recipe, ladder[:size]))
            return tried[size]

        trial = attempt(count)
        for _ in range(_MOST_EXTENSIONS):
            if trial.holds or count == most:
                break
            count = min(most, count + max(1, (most - count) // 5))
            trial = attempt(count)
        # Whether fewer, or more, in float are faster is for the clock to say.
        around = {0, count // 2, count * 3 // 4, (count + len(ladder)) // 2} if explores else set()
        for size in sorted(around - tried.keys()):
            attempt(size)
        if trial.holds:
            self._try_predictions(trial.variant)
            self._try_other_remainders(trial.variant)
        self._progress("candidates", len(tried), len(tried))

    def _fewest_by_agreement(self, recipe: Recipe, ladder: list[Rung]) -> int:
        """By bisection on the ranking images: how many steps it takes."""
        low, high = -1, len(ladder) - 1  # one layer at least stays quantized
        steps = max(1, high.bit_length())
        for step in range(steps + 1):
            if high - low <= 1:
                break
            middle = (low + high) // 2
            variant = self._after(recipe, ladder[:middle])
            feared = self._budget.feared_drop(self._known.evaluate(variant, self._part))
            if feared <= _RANKING_MARGIN * self._budget.max_drop:
                high = middle
            else:
                low = middle
            self._progress("layers to better", step + 1, steps + 1)
        self._progress("layers to better", steps + 1, steps + 1)
        return high

    def _try_predictions(self, variant: Variant) -> None:
        """Where the layers that predict are much of the work, try them in INT8 too."""
        own = {layer.name for layer in self._layers}
        predictions = [macs for name, macs in self._macs.items() if name not in own]
        if variant.recipe is not None and sum(predictions) > _HEAVY_PREDICTIONS * sum(self._macs.values()):
            self._try(replace(variant, recipe=replace(variant.recipe, quantizes_predictions=True)))

    def _try_other_remainders(self, variant: Variant) -> None:
        """What is left in float may run in less than FP32, where that holds the budget too."""
        for precision in other_precisions(self._engine):
            other = replace(variant, precision=precision)
            try:
                feared = self._budget.feared_drop(self._known.evaluate(other, self._part))
            except UnsupportedError:
                continue
            if feared <= 1.5 * self._budget.max_drop:
                self._try(other)

    def _after(self, recipe: Recipe, rungs: list[Rung]) -> Variant:
        return Variant(engine=self._engine, recipe=climb(recipe, rungs))

    def _rank(self, recipe: Recipe) -> Evaluation:
        return self._known.evaluate(Variant(engine=self._engine, recipe=recipe), self._part)

    def _try(self, variant: Variant) -> Trial:
        """Measure a variant in full and keep it; what was tried before is the same trial."""
        for trial in self.result.trials:
            if trial.variant == variant:
                return trial
        evaluation = self._known.evaluate(variant, self._choice, in_full=True)
        share = evaluation.int8_share
        is_float = variant == Variant(engine=self._engine)
        trial = Trial(
            variant=variant,
            evaluation=evaluation,
            holds=is_float or self._budget.holds(evaluation),
            int8_share=self._quantized_share(variant) if share is None else share,
        )
        self.result.trials.append(trial)
        return trial

    def _quantized_share(self, variant: Variant) -> float:
        """Of the work, that of the layers that are quantized in the file."""
        total = sum(self._macs.values())
        if variant.recipe is None or not total:
            return 0.0
        quantized = self._quantizer.quantizable(variant.recipe)
        return (
            sum(self._macs[layer.name] for layer in quantized if layer.name not in variant.recipe.float_layers) / total
        )
