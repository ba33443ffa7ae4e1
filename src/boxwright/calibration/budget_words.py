"""What a search found, in the words that a user reads."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from boxwright.calibration.budget import Budget
from boxwright.calibration.budget_images import SearchImages
from boxwright.calibration.search_result import SearchResult, Trial
from boxwright.calibration.variant import Variant
from boxwright.calibration.warning_words import float_model_warnings, image_warnings


def advice(search: SearchResult, budget: Budget) -> str:
    """What to run on an engine, in a line."""
    chosen, best = search.chosen(), search.recommended()
    if best is None:
        return f"{search.engine}: the time was up before any form was measured; pass a longer --time-limit"
    floats = [trial for trial in search.trials if trial.is_float]
    against = ", ".join(_with_time(trial) for trial in floats)
    if chosen is None:
        so_far = " that was tried in the time" if search.time_is_up else ""
        return (
            f"{search.engine}: no INT8 form{so_far} keeps within {budget.max_drop:g} points; "
            f"run the float model{_options(best)} ({against})"
        )
    if not best.is_float and best.variant != chosen.variant:
        return _advice_on_two(search, best, chosen, against)
    line = f"{search.engine}: INT8 takes {chosen.latency_ms:.2f} ms, against {against}; "
    if not best.is_float:
        return f"{line}run the INT8 file{_options(chosen)}"
    if best.is_faster_than(chosen):
        line += f"INT8 is not faster here: run the float model{_options(best)}"
    else:
        line += (
            f"INT8 is not told from {_label(best.variant)} by these times: the float model{_options(best)} "
            "is the safer choice"
        )
    fastest = search.fastest(is_float=False)[0]
    if fastest.variant != chosen.variant:
        line += (
            f" ({_share(fastest)} instead of {100 * chosen.int8_share:.0f} % it would be {fastest.latency_ms:.2f} ms)"
        )
    return line


def _advice_on_two(search: SearchResult, best: Trial, chosen: Trial, against: str) -> str:
    """Where the fastest INT8 form is not the one that is written."""
    best_float = search.recommended(only_float=True)
    is_worth_it = best_float is None or chosen.is_faster_than(best_float)
    to_run = f"INT8 file{_options(chosen)}" if is_worth_it else f"float model{_options(best_float or chosen)}"
    return (
        f"{search.engine}: the fastest is INT8 {_share(best)}, {best.latency_ms:.2f} ms, against {against}; the file "
        f"was written {_share(chosen)}, {chosen.latency_ms:.2f} ms, since at least {100 * search.wanted_share:.0f} % "
        f"are wanted on {search.engine}; of what there is run the {to_run}"
    )


def _share(trial: Trial) -> str:
    return f"with {100 * trial.int8_share:.0f} % of the work on integers"


def _with_time(trial: Trial) -> str:
    return f"{_label(trial.variant)} {trial.latency_ms:.2f} ms" + ("" if trial.holds else " (over the budget)")


def _options(trial: Trial) -> str:
    return "" if trial.variant.precision == "fp32" else f" with --precision {trial.variant.precision}"


def _label(variant: Variant) -> str:
    return variant.precision.upper() if variant.recipe is None else "INT8"


def failure(searches: Sequence[SearchResult], budget: Budget, *, written: Collection[str] | None) -> str:
    """Why the budget cannot be met: of each engine that fails the form that comes nearest, and what it lost.

    Args:
        searches: of each engine.
        budget: that they were to hold.
        written: engines that a form was written for all the same; None where none should be.
    """
    parts = []
    has_form = False
    for search in searches:
        if search.chosen() is not None:
            continue
        best = search.best(budget)
        if best is None or best.evaluation.difference is None:
            parts.append(
                f"{search.engine}: the time was up before any INT8 form was measured; pass a longer --time-limit"
            )
            continue
        has_form = True
        lost = 100 * best.evaluation.difference.drop
        feared = budget.feared_drop(best.evaluation)
        parts.append(
            f"{search.engine}: the best is {best.variant.name!r}, which lost {lost:.2f} points "
            f"({feared:.2f} to be feared on other images) at {best.latency_ms:.2f} ms"
        )
    if written:
        missing = [search.engine for search in searches if search.engine not in written]
        end = "written all the same" + (f", but nothing for {', '.join(missing)}" if missing else "")
    else:
        end = "nothing written" + ("; pass --allow-worse to write it" if has_form and written is None else "")
    return f"the budget of {budget.max_drop:g} points cannot be met: {'; '.join(parts)}; {end}"


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
