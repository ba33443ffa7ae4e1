"""What a search found: the forms that were measured, what each step won, and which form is the one."""

from __future__ import annotations

from dataclasses import dataclass, field

from boxwright.calibration.budget import Budget
from boxwright.calibration.evaluation import Evaluation
from boxwright.calibration.sensitivity import LayerSensitivity
from boxwright.calibration.stopwatch import is_surely_faster
from boxwright.calibration.variant import Variant
from boxwright.core.placement import rules_for

# Of the time of another form: then speed counts for more than the share on integers.
_MUCH_FASTER = 0.9


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A variant that was measured in full.

    Attributes:
        variant: what it is.
        evaluation: with the difference in mAP and the time.
        holds: whether it is within the budget.
        int8_share: of all multiplications before the raw heads, those that the engine executes on integers; those of
            layers that are quantized in the file where it does not show its graph.
        blocks_ms: times of the final measurement in turns, round by round; empty for what had no part in it.
    """

    variant: Variant
    evaluation: Evaluation
    holds: bool
    int8_share: float = 0.0
    blocks_ms: tuple[float, ...] = ()

    @property
    def latency_ms(self) -> float:
        """Of the engine alone, an image."""
        assert self.evaluation.latency_ms is not None
        return self.evaluation.latency_ms

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.variant.recipe is None

    def is_faster_than(self, other: Trial) -> bool:
        """Whether it takes less time, beyond the noise where that is known."""
        if self.blocks_ms and other.blocks_ms:
            return is_surely_faster(self.blocks_ms, other.blocks_ms)
        return self.latency_ms < other.latency_ms


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
        return [trial for trial in self.trials if not trial.is_float]

    @property
    def wanted_share(self) -> float:
        """Of the work on integers, on this engine; 0 for as much as pays."""
        return rules_for(self.engine).wanted_share

    def fastest(self, *, is_float: bool, least_share: float = 0.0) -> list[Trial]:
        """What may be chosen among: forms within the budget, the fastest first.

        Once some were timed in turns, none but these: the times of the others are only about comparable.

        Args:
            is_float: whether the float forms are asked for, or those in INT8.
            least_share: that the engine must execute on integers.
        """
        timed = [trial for trial in self.trials if trial.blocks_ms] or self.trials
        found = [
            trial for trial in timed if trial.holds and trial.is_float == is_float and trial.int8_share >= least_share
        ]
        return sorted(found, key=lambda trial: trial.latency_ms)

    def chosen(self) -> Trial | None:
        """The INT8 form to write: the fastest within the budget that has the wanted share on integers.

        Where there is none, or where the fastest of all gains much on that and on every float form: the fastest of all.
        """
        holding = self.fastest(is_float=False)
        wanted = self.fastest(is_float=False, least_share=self.wanted_share)
        if not holding or not wanted:
            return holding[0] if holding else None
        rivals = [wanted[0], *self.fastest(is_float=True)[:1]]
        gains_much = all(
            holding[0].is_faster_than(rival) and holding[0].latency_ms < _MUCH_FASTER * rival.latency_ms
            for rival in rivals
        )
        return holding[0] if gains_much else wanted[0]

    def best(self, budget: Budget) -> Trial | None:
        """The INT8 form that is over the budget by least."""
        return min(self.quantized, key=lambda trial: budget.excess(trial.evaluation), default=None)

    def recommended(self, *, only_float: bool = False) -> Trial | None:
        """The fastest form within the budget; where that is not beyond the noise, the one that is nearer to FP32."""
        floats = self.fastest(is_float=True)
        groups = (
            [trial for trial in floats if trial.variant.precision == "fp32"],
            [trial for trial in floats if trial.variant.precision != "fp32"],
            [] if only_float else self.fastest(is_float=False),
        )
        best: Trial | None = None
        for group in groups:
            if group and (best is None or group[0].is_faster_than(best)):
                best = group[0]
        return best
