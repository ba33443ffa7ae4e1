"""What a search found, in the words that a user reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from boxwright.calibration.budget import Budget
from boxwright.calibration.budget_images import SearchImages
from boxwright.calibration.search_result import SearchResult, Trial
from boxwright.calibration.variant import Variant
from boxwright.calibration.warning_words import float_model_warnings, image_warnings


def advice(search: SearchResult, budget: Budget) -> str:
    """What to run on an engine, in a line."""
    chosen, fastest = search.chosen(), search.recommended()
    floats = [trial for trial in search.trials if trial.variant.recipe is None]
    against = ", ".join(f"{_label(trial.variant)} {trial.latency_ms:.2f} ms" for trial in floats)
    if chosen is None:
        so_far = " that was tried in the time" if search.time_is_up else ""
        return (
            f"{search.engine}: no INT8 form{so_far} keeps within {budget.max_drop:g} points; "
            f"run the float model ({against})"
        )
    line = f"{search.engine}: INT8 takes {chosen.latency_ms:.2f} ms, against {against}"
    best_float = min((trial for trial in floats if trial.holds), key=lambda trial: trial.latency_ms)
    if best_float.latency_ms < chosen.latency_ms:
        line += f"; INT8 is not faster here: run the float model{_options(best_float)}"
    else:
        line += f"; run the INT8 file{_options(chosen)}"
    if fastest is not None and fastest.variant.recipe is not None and fastest.variant != chosen.variant:
        share = f"{100 * fastest.int8_share:.0f} % of the work on integers instead of {100 * chosen.int8_share:.0f} %"
        line += f" (with {share} it would be {fastest.latency_ms:.2f} ms)"
    return line


def _options(trial: Trial) -> str:
    return "" if trial.variant.precision == "fp32" else f" with --precision {trial.variant.precision}"


def _label(variant: Variant) -> str:
    return variant.precision.upper() if variant.recipe is None else "INT8"


def failure(searches: Sequence[SearchResult], budget: Budget, *, is_written: bool) -> str:
    """Why the budget cannot be met: of each engine that fails the form that comes nearest, and what it lost."""
    parts = []
    for search in searches:
        if search.chosen() is not None:
            continue
        best = search.best(budget)
        if best is None or best.evaluation.difference is None:
            parts.append(
                f"{search.engine}: the time was up before any INT8 form was measured; pass a longer --time-limit"
            )
            continue
        lost = 100 * best.evaluation.difference.drop
        feared = budget.feared_drop(best.evaluation)
        parts.append(
            f"{search.engine}: the best is {best.variant.name!r}, which lost {lost:.2f} points "
            f"({feared:.2f} to be feared on other images) at {best.latency_ms:.2f} ms"
        )
    written = "written all the same" if is_written else "nothing written; pass --allow-worse to write it"
    return f"the budget of {budget.max_drop:g} points cannot be met: {'; '.join(parts)}; {written}"


def warnings_of(images: SearchImages, searches: Sequence[SearchResult], budget: Budget) -> Iterator[str]:
    """What the user should know of a search's result."""
    yield from image_warnings(images.chosen, len(images.calibration.samples))
    differences = [trial.evaluation.difference for search in searches for trial in search.trials[:1]]
    maps_before = [difference.map_before for difference in differences if difference is not None]
    if maps_before:
        yield from float_model_warnings(min(maps_before))
    for search in searches:
        if search.time_is_up:
            yield f"{search.engine}: the time limit ended the search; run the same command again to go on"
        chosen = search.chosen()
        if chosen is not None and not budget.is_proven(chosen.evaluation):
            difference = chosen.evaluation.difference
            assert difference is not None
            yield (
                f"{search.engine}: {difference.num_images} images cannot prove the budget: the drop is "
                f"{100 * difference.drop:.2f} points, but up to {100 * difference.high:.2f} would not be odd"
            )
