"""A search on models whose every answer is known: a damage and a time for each layer."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from boxwright.calibration.agreement import Agreement
from boxwright.calibration.budget import Budget
from boxwright.calibration.evaluation import Evaluation
from boxwright.calibration.evaluation_store import EvaluationStore
from boxwright.calibration.float_model import Layer
from boxwright.calibration.paired_map import PairedDifference
from boxwright.calibration.recipe import Recipe
from boxwright.calibration.search import Progress, Search
from boxwright.calibration.search_result import SearchResult
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

    can_equalize = False

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
    slowness: float = 1.0
    executed: float | None = None
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
        float_ms: float | None = None,
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
        latency *= self.slowness if float_ms is None else float_ms / FLOAT_MS
        share = sum(MACS[name] for name in quantized) / sum(MACS.values())
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
            int8_share=None if self.executed is None or not with_latency else self.executed * share,
        )


def searched(
    evaluator: FakeEvaluator,
    max_drop: float,
    *,
    engine: str = "openvino",
    deadline: float = math.inf,
    kept: Path | None = None,
) -> SearchResult:
    return searcher(evaluator, max_drop, engine=engine, kept=kept).run(deadline=deadline)


def searcher(
    evaluator: FakeEvaluator,
    max_drop: float,
    *,
    engine: str = "openvino",
    kept: Path | None = None,
    on_progress: Progress = lambda phase, done, total: None,
) -> Search:
    parts: Mapping[str, Any] = {"evaluator": evaluator, "quantizer": FakeQuantizer(), "choice": FakeChoice()}
    return Search(
        engine,
        **parts,
        budget=Budget(max_drop=max_drop),
        macs=MACS,
        store=EvaluationStore(kept, {}),
        on_progress=on_progress,
    )
