"""The search on models whose every answer is known: a damage and a time for each layer."""

from __future__ import annotations

import math
import time
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from boxwright.calibration.agreement import Agreement
from boxwright.calibration.budget import Budget, feared_drop
from boxwright.calibration.budget_files import name_files, plan_files
from boxwright.calibration.budget_words import advice
from boxwright.calibration.evaluation import Evaluation
from boxwright.calibration.evaluation_store import EvaluationStore
from boxwright.calibration.float_model import Layer
from boxwright.calibration.paired_map import PairedDifference
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.search import Search
from boxwright.calibration.search_result import WANTED_SHARE, SearchResult
from boxwright.calibration.variant import Variant
from boxwright.core.errors import UnsupportedError

# Layer -> its damage and its multiplications. One layer is depthwise: little work, much harm.
DAMAGES = {"a": 0.02, "b": 0.10, "c": 0.01, "dw": 0.15, "d": 0.04, "e": 0.01}
MACS = {"a": 100, "b": 40, "c": 300, "dw": 10, "d": 200, "e": 350}
FLOAT_MS = 10.0


def layer(name: str) -> Layer:
    return Layer(
        name=name,
        kind="depthwise" if name == "dw" else "dense",
        input_name=f"{name}_in",
        output_name=f"{name}_out",
        weight=np.zeros((4, 4, 1, 1), np.float32),
    )


class FakeQuantizer:
    """Every layer may be quantized."""

    def quantizable(self, recipe: Recipe) -> tuple[Layer, ...]:
        return tuple(layer(name) for name in DAMAGES)


@dataclass
class FakeModel:
    """Without layers that a repair would apply to."""

    layers: tuple[Layer, ...] = ()


@dataclass
class FakeChoice:
    """A number of images."""

    count: int = 40

    @property
    def samples(self) -> list[int]:
        return list(range(self.count))

    def part(self, num_images: int) -> FakeChoice:
        return FakeChoice(min(self.count, num_images))


@dataclass
class FakeEvaluator:
    """Squares of damages add up; a quantized layer takes a third of its time."""

    method: str = "entropy"
    int8_speed: float = 3.0
    bf16_speed: float = 1.5
    fine_speed: float = 0.5
    seconds: float = 0.0
    model: FakeModel = field(default_factory=FakeModel)
    asked: list[Variant] = field(default_factory=list)

    def evaluate(
        self,
        variant: Variant,
        choice: FakeChoice,
        *,
        with_map: bool = False,
        with_latency: bool = False,
        is_simulated: bool = False,
    ) -> Evaluation:
        if variant.precision == "fp16":
            raise UnsupportedError("fp16", expected="another precision", got="fp16", fix="pass another")
        self.asked.append(variant)
        time.sleep(self.seconds)
        recipe = variant.recipe
        quantized = [] if recipe is None else [name for name in DAMAGES if name not in recipe.float_layers]
        # Ranges of another kind than the best double all damage.
        worse = 1.0 if recipe is None or recipe.method.kind == self.method else 2.0
        bf16 = 0.12 if variant.precision == "bf16" else 0.0
        fine = frozenset() if recipe is None else recipe.fine_layers
        finest = frozenset() if recipe is None else recipe.finest_layers
        squares = {name: (worse * DAMAGES[name]) ** 2 for name in quantized}
        squares |= {name: 0.25 * squares[name] for name in fine} | {name: 0.02 * squares[name] for name in finest}
        damage = math.sqrt(sum(squares.values()) + bf16**2)
        speeds = {name: self.int8_speed if name in quantized else 1.0 for name in DAMAGES}
        speeds |= dict.fromkeys(fine, self.fine_speed) | dict.fromkeys(finest, self.fine_speed / 1.5)
        if bf16:
            speeds = {name: max(speed, self.bf16_speed) for name, speed in speeds.items()}
        latency = FLOAT_MS * sum(MACS[name] / speeds[name] for name in MACS) / sum(MACS.values())
        drop = 0.03 * damage
        difference = PairedDifference(
            map_before=0.4,
            map_after=0.4 - drop,
            drop=drop,
            standard_error=0.001,
            low=drop - 0.002,
            high=drop + 0.002,
            num_images=choice.count,
        )
        return Evaluation(
            agreement=Agreement(value=1 - damage, box_change=0.0, score_change=0.0),
            difference=difference if with_map else None,
            latency_ms=latency if with_latency else None,
        )


def searched(
    evaluator: FakeEvaluator, max_drop: float, *, engine: str = "openvino", deadline: float = math.inf
) -> SearchResult:
    parts: Mapping[str, Any] = {"evaluator": evaluator, "quantizer": FakeQuantizer(), "choice": FakeChoice()}
    search = Search(
        engine,
        **parts,
        budget=Budget(max_drop=max_drop),
        macs=MACS,
        store=EvaluationStore(None, {}),
        on_progress=lambda phase, done, total: None,
    )
    return search.run(deadline=deadline)


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
    result = searched(FakeEvaluator(), feared_drop(0.03))
    chosen, recommended = result.chosen(), result.recommended()
    assert chosen is not None and chosen.variant.recipe is not None and recommended is not None
    assert chosen.int8_share == pytest.approx(0.85)
    assert chosen.variant.recipe.float_layers == {"dw", "b", "a"}
    assert "d" in chosen.variant.recipe.fine_layers | chosen.variant.recipe.finest_layers
    assert chosen.latency_ms == min(
        trial.latency_ms for trial in result.quantized if trial.holds and trial.int8_share >= WANTED_SHARE
    )
    # With more in float it is faster here, which is said.
    assert recommended.int8_share < WANTED_SHARE and recommended.latency_ms < chosen.latency_ms
    words = advice(result, Budget(max_drop=feared_drop(0.03)))
    assert "with 75 % of the work on integers instead of 85 %" in words


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

    def evaluate(self, variant: Variant, choice: FakeChoice, **wishes: bool) -> Evaluation:
        self.now += 60.0 if wishes.get("with_map") and variant.recipe is not None else 1.0
        return super().evaluate(variant, choice, **wishes)


@pytest.mark.parametrize("deadline", [200.0, 290.0, 420.0])
def test_nothing_is_begun_that_would_end_after_the_time_limit(monkeypatch: pytest.MonkeyPatch, deadline: float) -> None:
    evaluator = SlowEvaluator()
    monkeypatch.setattr("boxwright.calibration.search.time", types.SimpleNamespace(monotonic=lambda: evaluator.now))
    result = searched(evaluator, 0.5, deadline=deadline)
    assert result.time_is_up and any(trial.variant.recipe is not None for trial in result.trials)
    assert deadline - 62 < evaluator.now <= deadline + 1


def test_layers_that_there_was_no_time_for_are_taken_for_middling_ones() -> None:
    result = searched(FakeEvaluator(seconds=0.02), 0.5, deadline=time.monotonic() + 0.45)
    measured = {entry.layer for entry in result.sensitivities}
    assert measured < set(DAMAGES)
    assert any(trial.variant.recipe is not None for trial in result.trials)


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


def test_names_of_files(tmp_path: Any) -> None:
    result = searched(FakeEvaluator(), 1.0)
    trial = result.trials[-1]
    out = tmp_path / "m_int8.onnx"
    assert [path.name for path, _, _ in name_files(out, [(trial, ("openvino", "onnxruntime"))])] == ["m_int8.onnx"]
    both = name_files(out, [(trial, ("openvino",)), (trial, ("onnxruntime",))])
    assert [path.name for path, _, _ in both] == ["m_int8.openvino.onnx", "m_int8.onnxruntime.onnx"]
