"""What a search found: the forms that were measured, what each step won, and which form is the one."""

from __future__ import annotations

from dataclasses import dataclass, field

from boxwright.calibration.budget import Budget
from boxwright.calibration.evaluation import Evaluation
from boxwright.calibration.sensitivity import LayerSensitivity
from boxwright.calibration.variant import Variant

# Who asks for INT8 wants most of the work done in it, where the engine can do that within the budget.
WANTED_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A variant that was measured in full.

    Attributes:
        variant: what it is.
        evaluation: with the difference in mAP and the time.
        holds: whether it is within the budget.
        int8_share: of all multiplications before the raw heads, those of layers that are quantized.
    """

    variant: Variant
    evaluation: Evaluation
    holds: bool
    int8_share: float = 0.0

    @property
    def latency_ms(self) -> float:
        """Of the engine alone, an image."""
        assert self.evaluation.latency_ms is not None
        return self.evaluation.latency_ms


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one step of the search tried.

    Attributes:
        what: it was about.
        tried: name of the variant.
        agreement_before: with the float model's detections, of the best so far.
        agreement_after: of this one.
        kept: whether the search went on with it.
        seconds: that it took; 0 where the answer was known from an earlier run.
    """

    what: str
    tried: str
    agreement_before: float
    agreement_after: float
    kept: bool
    seconds: float


@dataclass(kw_only=True)
class SearchResult:
    """What a search on one engine found.

    Attributes:
        engine: its name.
        trials: all variants measured in full, float ones too.
        sensitivities: of the layers.
        steps: in the order they were taken.
        time_is_up: whether the time limit ended it.
    """

    engine: str
    trials: list[Trial] = field(default_factory=list)
    sensitivities: list[LayerSensitivity] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    time_is_up: bool = False

    @property
    def quantized(self) -> list[Trial]:
        """The INT8 trials."""
        return [trial for trial in self.trials if trial.variant.recipe is not None]

    def chosen(self) -> Trial | None:
        """The fastest INT8 form within the budget, of those with most of the work on integers where there are any."""
        holding = [trial for trial in self.quantized if trial.holds]
        wanted = [trial for trial in holding if trial.int8_share >= WANTED_SHARE] or holding
        return min(wanted, key=lambda trial: trial.latency_ms, default=None)

    def best(self, budget: Budget) -> Trial | None:
        """The INT8 form that is over the budget by least."""
        return min(self.quantized, key=lambda trial: budget.excess(trial.evaluation), default=None)

    def recommended(self) -> Trial | None:
        """The fastest form within the budget, float ones included."""
        return min((trial for trial in self.trials if trial.holds), key=lambda trial: trial.latency_ms, default=None)
