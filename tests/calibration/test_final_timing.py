"""The last measurement: who has part in it, and what is chosen and said by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from boxwright.calibration.budget import Budget, feared_drop
from boxwright.calibration.budget_words import advice, failure
from boxwright.calibration.final_timing import time_finalists
from boxwright.calibration.search_result import SearchResult
from boxwright.calibration.stopwatch import is_surely_faster, typical
from boxwright.calibration.variant import Variant
from search_fakes import FakeEvaluator, searched

CALM = (1.0, 1.01, 1.0, 1.02, 1.0, 1.01, 1.0, 1.0, 1.03, 1.0)
RESTLESS = (1.0, 1.4, 0.9, 1.9, 1.0, 1.2, 0.8, 1.5, 1.0, 1.3)


class Turns:
    """Times by variant, in place of engines."""

    def __init__(self, ms: Callable[[Variant], float], noise: tuple[float, ...] = CALM) -> None:
        self.ms, self.noise = ms, noise
        self.timed: list[Variant] = []

    def time_in_turns(self, variants: list[Variant], choice: Any, *, rounds: int) -> list[list[float]]:
        self.timed += variants
        shifted = [self.noise[index % rounds :] + self.noise[: index % rounds] for index in range(len(variants))]
        return [[self.ms(variant) * part for part in noise] for variant, noise in zip(variants, shifted, strict=True)]


def timed(result: SearchResult, turns: Turns) -> SearchResult:
    parts: dict[str, Any] = {"evaluator": turns, "choice": None}
    time_finalists(result, **parts, on_progress=lambda phase, done, total: None)
    return result


@pytest.mark.parametrize("damage", [0.03, 0.06, 0.1])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_what_may_be_chosen_is_timed_and_chosen_by_these_times(engine: str, damage: float) -> None:
    result = searched(FakeEvaluator(), feared_drop(damage), engine=engine)
    before = result.chosen(), result.recommended()
    floats = [trial.variant for trial in result.trials if trial.is_float]
    # All that is timed turns out slower than the float model made the search believe; nothing else is chosen for that.
    turns = Turns(lambda variant: 5.0 if variant.recipe is None else 4.8 - 0.01 * len(variant.recipe.float_layers))
    timed(result, turns)
    assert {trial.variant for trial in before if trial is not None} | set(floats) <= set(turns.timed)
    assert len(turns.timed) == len(set(turns.timed))
    for trial in (result.chosen(), result.recommended()):
        assert trial is not None and trial.variant in turns.timed and trial.blocks_ms
        assert trial.latency_ms == typical(trial.blocks_ms)


def test_a_form_that_was_not_timed_in_turns_is_not_chosen_for_its_older_time() -> None:
    result = searched(FakeEvaluator(), feared_drop(0.06), engine="onnxruntime")
    first = result.chosen()
    assert first is not None and first.variant.recipe is not None
    for index in range(5):
        variant = replace(first.variant, recipe=replace(first.variant.recipe, migration=0.1 * index))
        evaluation = replace(first.evaluation, latency_ms=first.latency_ms * (1.01 + 0.01 * index))
        result.trials.append(replace(first, variant=variant, evaluation=evaluation))
    timed(result, Turns(lambda variant: 10.0 if variant.recipe is None else 9.0))
    chosen, best = result.chosen(), result.recommended()
    assert chosen is not None and chosen is best and chosen.blocks_ms
    assert chosen.latency_ms > min(trial.latency_ms for trial in result.quantized)


@pytest.mark.parametrize(
    ("int8_ms", "noise", "is_recommended", "words"),
    [
        (8.0, CALM, True, "run the INT8 file"),
        (9.9, CALM, False, "not told from FP32 by these times: the float model is the safer choice"),
        (9.0, RESTLESS, False, "not told from FP32 by these times: the float model is the safer choice"),
        (12.0, CALM, False, "INT8 is not faster here: run the float model"),
    ],
)
def test_int8_is_faster_only_beyond_the_noise(
    int8_ms: float, noise: tuple[float, ...], is_recommended: bool, words: str
) -> None:
    result = searched(FakeEvaluator(), feared_drop(0.1), engine="onnxruntime")
    timed(result, Turns(lambda variant: 10.0 if variant.recipe is None else int8_ms, noise))
    best = result.recommended()
    assert best is not None and best.is_float != is_recommended
    assert words in advice(result, Budget(max_drop=feared_drop(0.1)))


def test_one_round_in_ten_may_be_an_exception() -> None:
    assert is_surely_faster([9.0] * 9 + [11.0], [10.0] * 10)
    assert not is_surely_faster([9.0] * 8 + [11.0] * 2, [10.0] * 10)
    assert not is_surely_faster([9.0] * 5, [10.0] * 5)  # too few to tell
    assert not is_surely_faster([9.85] * 10, [10.0] * 10)  # no more than two openings of one model may differ


def test_an_engine_that_had_no_time_is_not_said_to_be_written() -> None:
    budget = Budget(max_drop=feared_drop(0.005))
    empty = SearchResult(engine="openvino", time_is_up=True)
    assert advice(empty, budget) == "openvino: the time was up before any form was measured; pass a longer --time-limit"
    nothing = failure([empty], budget, written=())
    assert nothing.endswith("; nothing written") and "--time-limit" in nothing
    assert failure([empty], budget, written=None).endswith("; nothing written")
    tried = searched(FakeEvaluator(), budget.max_drop, engine="onnxruntime")
    assert failure([empty, tried], budget, written=None).endswith("nothing written; pass --allow-worse to write it")
    some = failure([empty, tried], budget, written=["onnxruntime"])
    assert some.endswith("written all the same, but nothing for openvino")
    assert "run the float model (FP32 10.00 ms)" in advice(tried, budget)
