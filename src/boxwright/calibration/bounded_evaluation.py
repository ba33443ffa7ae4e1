"""Evaluations of one search: taken from what is known where they can be, and none begun that would end too late."""

from __future__ import annotations

import time

from boxwright.calibration.choice import ChoiceSet
from boxwright.calibration.evaluation import Evaluation, Evaluator
from boxwright.calibration.evaluation_store import EvaluationStore
from boxwright.calibration.forecast import Forecast, Kind
from boxwright.calibration.variant import Variant


class TimeIsUpError(Exception):
    """The search must end with what it has."""


class EnoughTimeError(Exception):
    """A part of the search has had its share."""


class BoundedEvaluator:
    """Evaluates variants on one engine.

    All times are given on the basis of the float model's own, which must be the first variant measured in full: where
    that is known from an earlier run, what is measured now is as comparable with it as what was measured then.

    Args:
        evaluator: measures what is not known.
        store: of what is.

    Attributes:
        deadline: of `time.monotonic`.
        forecast: told of each evaluation.
    """

    def __init__(self, evaluator: Evaluator, store: EvaluationStore) -> None:
        self.deadline = float("inf")
        self.forecast = Forecast()
        self._evaluator = evaluator
        self._store = store
        self._float_ms: float | None = None
        self._longest_s = 0.0  # of the measurements in full

    def evaluate(
        self,
        variant: Variant,
        choice: ChoiceSet,
        *,
        in_full: bool = False,
        is_simulated: bool = False,
        enough: float | None = None,
    ) -> Evaluation:
        """What is known of a variant, else measured where there is time, of a part of the search or all of it.

        Raises:
            TimeIsUpError: where it would end after the deadline.
            EnoughTimeError: where it is later than `enough`.
        """
        started = time.monotonic()
        key = {"variant": variant.key(), "num_images": len(choice.samples), "in_full": in_full}
        if is_simulated:
            key["is_simulated"] = True
        found = self._store.get(key)
        if found is None:
            found = self._measure(variant, choice, in_full, is_simulated, enough)
            self._store.put(key, found)
        kind: Kind = "full" if in_full else "layer" if is_simulated else "ranking"
        self.forecast.note(kind, time.monotonic() - started, num_images=len(choice.samples))
        if in_full and variant == Variant(engine=variant.engine):
            self._float_ms = found.latency_ms
        return found

    def _measure(
        self, variant: Variant, choice: ChoiceSet, in_full: bool, is_simulated: bool, enough: float | None
    ) -> Evaluation:
        started = time.monotonic()
        if started + (self._longest_s if in_full else 0.0) > self.deadline:
            raise TimeIsUpError
        if enough is not None and started > enough:
            raise EnoughTimeError
        found = self._evaluator.evaluate(
            variant,
            choice,
            with_map=in_full,
            with_latency=in_full,
            is_simulated=is_simulated,
            float_ms=self._float_ms,
        )
        if in_full:
            self._longest_s = max(self._longest_s, time.monotonic() - started)
        return found
