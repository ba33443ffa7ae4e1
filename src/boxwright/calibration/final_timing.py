"""The last measurement of a search: what may be chosen is timed again, all in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from boxwright.calibration.choice import ChoiceSet
from boxwright.calibration.evaluation import Evaluator
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.search_result import SearchResult, Trial
from boxwright.calibration.stopwatch import typical

_MOST_WANTED, _MOST_OTHERS = 2, 3
_ROUNDS = 10


def time_finalists(
    search: SearchResult,
    evaluator: Evaluator,
    choice: ChoiceSet,
    *,
    recipes: Sequence[Recipe] = (),
    on_progress: Callable[[str, int, int], None],
) -> None:
    """Time what may be chosen or recommended, in turns: the search's own times lie minutes apart.

    What is chosen then is among these. The other forms keep their ratio to the float model, for the picture.

    Args:
        search: whose trials get their final times.
        evaluator: that opens them.
        choice: images, of which one batch serves.
        recipes: that other engines chose, which one file for all may have.
        on_progress: called with a phase, what is done of it and its size.
    """
    finalists = _finalists(search, recipes)
    if len(finalists) < 2:
        return
    phase = f"{search.engine}: timing in turns"
    on_progress(phase, 0, len(finalists))
    times = evaluator.time_in_turns([trial.variant for trial in finalists], choice, rounds=_ROUNDS)
    scale = typical(times[0]) / finalists[0].latency_ms
    blocks = {search.trials.index(trial): blocks for trial, blocks in zip(finalists, times, strict=True)}
    for index, trial in enumerate(search.trials):
        own = blocks.get(index)
        latency_ms = trial.latency_ms * scale if own is None else typical(own)
        search.trials[index] = replace(
            trial, evaluation=replace(trial.evaluation, latency_ms=latency_ms), blocks_ms=tuple(own or ())
        )
    on_progress(phase, len(finalists), len(finalists))


def _finalists(search: SearchResult, recipes: Sequence[Recipe]) -> list[Trial]:
    """All float forms, FP32 first, then the fastest INT8 forms within the budget, and those with the wanted share."""
    holding = search.fastest(is_float=False)
    wanted = search.fastest(is_float=False, least_share=search.wanted_share)
    taken = [
        *wanted[:_MOST_WANTED],
        *holding[:_MOST_OTHERS],
        *(item for item in holding if item.variant.recipe in recipes),
    ]
    floats = [trial for trial in search.trials if trial.is_float]
    return floats + [trial for trial in search.quantized if any(trial is other for other in taken)]
