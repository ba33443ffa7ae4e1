"""The search on models whose every answer is known: a damage and a time for each layer."""

from __future__ import annotations

import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from boxwright.calibration.budget import Budget, feared_drop
from boxwright.calibration.budget_files import name_files, plan_files
from boxwright.calibration.budget_words import advice
from boxwright.calibration.evaluation import Evaluation
from boxwright.calibration.search_result import SearchResult, Trial
from boxwright.calibration.variant import Variant
from boxwright.core.placement import rules_for
from search_fakes import DAMAGES, FakeChoice, FakeEvaluator, searched

WANTED_SHARE = rules_for("openvino").wanted_share


def float_layers(result: SearchResult) -> set[str]:
    chosen = result.chosen()
    assert chosen is not None and chosen.variant.recipe is not None
    return set(chosen.variant.recipe.float_layers)


@pytest.mark.parametrize(
    ("allowed_damage", "returned"),
    [(0.2, set()), (0.12, {"dw"}), (0.06, {"dw", "b"}), (0.03, {"dw", "b", "d"}), (0.02, {"dw", "b", "d", "a"})],
)
def test_the_fewest_layers_return_the_most_harmful_first(allowed_damage: float, returned: set[str]) -> None:
    result = searched(FakeEvaluator(), feared_drop(allowed_damage), engine="onnxruntime")
    assert float_layers(result) == returned
    chosen = result.chosen()
    assert chosen is not None and chosen.variant.recipe is not None
    assert chosen.variant.recipe.method.kind == "entropy"  # the sweep found it
    assert result.recommended() is chosen
    assert [entry.layer for entry in result.sensitivities] == list(DAMAGES)


def test_layers_that_run_several_times_on_integers_take_the_place_of_float() -> None:
    result = searched(FakeEvaluator(fine_speed=2.0), feared_drop(0.03))
    chosen, recommended = result.chosen(), result.recommended()
    assert chosen is not None and chosen.variant.recipe is not None and recommended is not None
    assert chosen.int8_share == pytest.approx(0.85)
    assert chosen.variant.recipe.float_layers == {"dw", "b", "a"}
    assert "d" in chosen.variant.recipe.fine_layers | chosen.variant.recipe.finest_layers
    assert chosen.latency_ms == min(
        trial.latency_ms for trial in result.quantized if trial.holds and trial.int8_share >= WANTED_SHARE
    )
    # With more in float it is a little faster here, which is said.
    assert recommended.int8_share < WANTED_SHARE and recommended.latency_ms < chosen.latency_ms
    words = advice(result, Budget(max_drop=feared_drop(0.03)))
    assert f"the fastest is INT8 with 75 % of the work on integers, {recommended.latency_ms:.2f} ms" in words
    assert (
        f"written with 85 % of the work on integers, {chosen.latency_ms:.2f} ms" in words and "at least 80 %" in words
    )


def test_what_is_much_faster_is_written_with_less_on_integers() -> None:
    """Layers that run several times cost so much here that the share wanted is not worth it."""
    budget = Budget(max_drop=feared_drop(0.03))
    result = searched(FakeEvaluator(fine_speed=0.5), budget.max_drop)
    chosen = result.chosen()
    wanted = min(trial.latency_ms for trial in result.quantized if trial.holds and trial.int8_share >= WANTED_SHARE)
    assert chosen is not None and chosen is result.recommended()
    assert chosen.int8_share == pytest.approx(0.75) and chosen.latency_ms < 0.9 * wanted
    assert "run the INT8 file" in advice(result, budget)


@pytest.mark.parametrize(("exceptions", "is_sure"), [(1, True), (2, False)])
def test_what_is_not_surely_faster_is_not_written_for_its_speed(exceptions: int, is_sure: bool) -> None:
    """Four fifths of the time as a rule, but slower than the form with the wanted share in so many of ten rounds."""
    result = searched(FakeEvaluator(fine_speed=0.5), feared_drop(0.03))
    little = result.fastest(is_float=False)[0]
    wanted = result.fastest(is_float=False, least_share=WANTED_SHARE)[0]
    fp32 = result.trials[0]
    times = {id(little): 4.0, id(wanted): 5.0, id(fp32): 6.0}

    def timed(trial: Trial) -> Trial:
        blocks = [times[id(trial)]] * 10
        if trial is little:
            blocks[:exceptions] = [7.0] * exceptions
        evaluation = replace(trial.evaluation, latency_ms=times[id(trial)])
        return replace(trial, evaluation=evaluation, blocks_ms=tuple(blocks))

    again = replace(result, trials=[timed(fp32), timed(wanted), timed(little)])
    chosen = again.chosen()
    assert chosen is not None and (chosen.int8_share < WANTED_SHARE) == is_sure


def test_what_gains_little_on_float_gives_way_to_the_share_that_is_wanted() -> None:
    """Where INT8 hardly pays, its fastest form would be all float but for a layer or two."""
    result = searched(FakeEvaluator(int8_speed=1.05, fine_speed=0.5, bf16_speed=0.9), feared_drop(0.03))
    chosen, fastest = result.chosen(), result.fastest(is_float=False)[0]
    assert chosen is not None and chosen.int8_share >= WANTED_SHARE
    assert 9 < fastest.latency_ms < 10 < chosen.latency_ms


def test_engines_that_fuse_all_between_layers_know_no_finer_forms() -> None:
    result = searched(FakeEvaluator(fine_speed=2.0), feared_drop(0.03), engine="onnxruntime")
    recipes = [trial.variant.recipe for trial in result.quantized]
    assert recipes and all(recipe is not None and not recipe.fine_layers for recipe in recipes)


def test_each_step_says_what_it_won() -> None:
    steps = searched(FakeEvaluator(), 1.0).steps
    kept = [step for step in steps if step.what == "ranges" and step.kept]
    assert [step.tried.split(", ")[1] for step in kept] == ["entropy"]
    assert all(step.kept == (step.agreement_after > step.agreement_before) for step in steps)


def test_int8_that_is_slower_is_chosen_but_not_recommended() -> None:
    result = searched(FakeEvaluator(int8_speed=0.5), feared_drop(0.17))
    chosen, recommended = result.chosen(), result.recommended()
    assert chosen is not None and chosen.variant.recipe is not None
    assert recommended is not None and recommended.variant == Variant(engine="openvino", precision="bf16")
    # More in float is faster then, and that was tried too.
    assert any(trial.int8_share < WANTED_SHARE for trial in result.quantized if trial.holds)


def test_what_is_left_in_float_may_run_in_bf16() -> None:
    result = searched(FakeEvaluator(), feared_drop(0.18))
    chosen = result.chosen()
    assert chosen is not None and chosen.variant.precision == "bf16"


def test_a_float_form_that_is_over_the_budget_is_said_to_be() -> None:
    budget = Budget(max_drop=feared_drop(0.005))
    words = advice(searched(FakeEvaluator(), budget.max_drop), budget)
    assert words.endswith("run the float model (FP32 10.00 ms, BF16 6.67 ms (over the budget))")


def test_no_form_is_good_enough() -> None:
    result = searched(FakeEvaluator(), feared_drop(0.005), engine="onnxruntime")
    assert result.chosen() is None
    best = result.best(Budget(max_drop=feared_drop(0.005)))
    assert best is not None and best.variant.recipe is not None
    assert len(best.variant.recipe.float_layers) == len(DAMAGES) - 1


def test_time_that_is_up_leaves_what_was_found() -> None:
    result = searched(FakeEvaluator(seconds=0.01), 1.0, deadline=time.monotonic() + 0.2)
    assert result.time_is_up
    assert result.trials and result.trials[0].variant == Variant(engine="openvino")


class SlowEvaluator(FakeEvaluator):
    """Moves a clock: by a minute where it measures in full a form that is not float, else by a second."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def evaluate(self, variant: Variant, choice: FakeChoice, **wishes: Any) -> Evaluation:
        self.now += 60.0 if wishes.get("with_map") and variant.recipe is not None else 1.0
        return super().evaluate(variant, choice, **wishes)


@pytest.mark.parametrize("deadline", [200.0, 290.0, 420.0])
def test_nothing_is_begun_that_would_end_after_the_time_limit(monkeypatch: pytest.MonkeyPatch, deadline: float) -> None:
    evaluator = SlowEvaluator()
    for module in ("search", "bounded_evaluation"):
        clock = types.SimpleNamespace(monotonic=lambda: evaluator.now)
        monkeypatch.setattr(f"boxwright.calibration.{module}.time", clock)
    result = searched(evaluator, 0.5, deadline=deadline)
    assert result.time_is_up and any(trial.variant.recipe is not None for trial in result.trials)
    assert deadline - 62 < evaluator.now <= deadline + 1


def test_layers_that_there_was_no_time_for_are_taken_for_middling_ones() -> None:
    result = searched(FakeEvaluator(seconds=0.02), 0.5, deadline=time.monotonic() + 0.45)
    measured = {entry.layer for entry in result.sensitivities}
    assert measured < set(DAMAGES)
    assert any(trial.variant.recipe is not None for trial in result.trials)


@pytest.mark.parametrize("int8_speed", [0.3, 0.9, 3.0])
@pytest.mark.parametrize("damage", [0.02, 0.03, 0.06, 0.12])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "tensorrt"])
def test_only_where_a_share_is_wanted_is_a_slower_form_written(engine: str, damage: float, int8_speed: float) -> None:
    budget = Budget(max_drop=feared_drop(damage))
    result = searched(FakeEvaluator(int8_speed=int8_speed), budget.max_drop, engine=engine)
    chosen, best = result.chosen(), result.recommended()
    assert chosen is not None and best is not None
    holding = [trial for trial in result.trials if trial.holds]
    assert best.latency_ms == min(trial.latency_ms for trial in holding)
    fastest = min(trial.latency_ms for trial in holding if not trial.is_float)
    wanted = [trial.latency_ms for trial in holding if trial.int8_share >= WANTED_SHARE and not trial.is_float]
    floats = [trial.latency_ms for trial in holding if trial.is_float]
    if engine != "openvino" or not wanted or fastest < 0.9 * min(wanted + floats):
        assert chosen.latency_ms == fastest
    else:
        assert chosen.latency_ms == min(wanted)
    # The line tells to run what is fastest, or both times where that has no file.
    words = advice(result, budget)
    if best.is_float:
        assert "run the float model" in words and ("bf16" in words) == (best.variant.precision == "bf16")
    elif best is chosen:
        assert "run the INT8 file" in words
    else:
        assert f"{best.latency_ms:.2f} ms" in words and f"{chosen.latency_ms:.2f} ms" in words


def test_what_the_engine_executes_decides_and_not_what_the_file_says() -> None:
    files = searched(FakeEvaluator(fine_speed=2.0), feared_drop(0.03))
    executed = searched(FakeEvaluator(executed=0.9, fine_speed=2.0), feared_drop(0.03))
    first, second = files.chosen(), executed.chosen()
    assert first is not None and first.int8_share == pytest.approx(0.85)
    # With nine tenths of that no form executes 80 %, and the fastest is taken.
    assert second is not None and second is executed.recommended() and second.latency_ms < first.latency_ms
    assert second.int8_share == pytest.approx(0.9 * 0.75)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_no_form_is_tried_twice(engine: str) -> None:
    for damage in (0.03, 0.06, 0.2):
        result = searched(FakeEvaluator(), feared_drop(damage), engine=engine)
        assert len({trial.variant for trial in result.trials}) == len(result.trials)


def test_times_of_two_runs_have_one_basis(tmp_path: Path) -> None:
    whole = searched(FakeEvaluator(), feared_drop(0.06))
    cut_off = searched(FakeEvaluator(seconds=0.01), feared_drop(0.06), deadline=time.monotonic() + 0.2, kept=tmp_path)
    assert cut_off.time_is_up
    # The machine is half as fast in the second run.
    resumed = searched(FakeEvaluator(slowness=2.0), feared_drop(0.06), kept=tmp_path)
    assert len(resumed.trials) > len(cut_off.trials)
    times = [(trial.variant, pytest.approx(trial.latency_ms)) for trial in whole.trials]
    assert [(trial.variant, trial.latency_ms) for trial in resumed.trials] == times


def test_one_file_where_one_form_serves_all() -> None:
    budget = Budget(max_drop=1.0)
    first, second = searched(FakeEvaluator(), 1.0), searched(FakeEvaluator(), 1.0, engine="onnxruntime")
    assert [served for _, served in plan_files([first, second], budget)] == [("openvino",), ("onnxruntime",)]
    own = second.chosen()
    form = first.chosen()
    assert own is not None and form is not None
    shared = Variant(engine="onnxruntime", recipe=form.variant.recipe)
    second.trials.append(type(own)(variant=shared, evaluation=own.evaluation, holds=True))
    assert plan_files([first, second], budget) == [(form, ("openvino", "onnxruntime"))]


def test_a_form_with_less_on_integers_serves_no_engine_that_wants_more() -> None:
    budget = Budget(max_drop=1.0)
    first, second = searched(FakeEvaluator(), 1.0), searched(FakeEvaluator(), 1.0, engine="onnxruntime")
    own, form = second.chosen(), first.chosen()
    assert own is not None and form is not None and form.int8_share >= WANTED_SHARE
    for share, names in ((0.5 * WANTED_SHARE, ["openvino", "onnxruntime"]), (WANTED_SHARE, ["openvino"])):
        little = replace(form.evaluation, latency_ms=0.99 * form.latency_ms, int8_share=share)
        variant = Variant(engine="openvino", recipe=own.variant.recipe)
        shared = replace(form, variant=variant, evaluation=little, int8_share=share)
        with_shared = replace(first, trials=[*first.trials, shared])
        assert [served[0] for _, served in plan_files([with_shared, second], budget)] == names


def test_names_of_files(tmp_path: Any) -> None:
    result = searched(FakeEvaluator(), 1.0)
    trial = result.trials[-1]
    out = tmp_path / "m_int8.onnx"
    assert [path.name for path, _, _ in name_files(out, [(trial, ("openvino", "onnxruntime"))])] == ["m_int8.onnx"]
    both = name_files(out, [(trial, ("openvino",)), (trial, ("onnxruntime",))])
    assert [path.name for path, _, _ in both] == ["m_int8.openvino.onnx", "m_int8.onnxruntime.onnx"]
