"""Where a run stands, and the learning rate and momentum that belong there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

# One-cycle starts at this part of the peak. Source: Smith and Topin, Super-Convergence, 2018, sec. 3 and fig. 2.
ONE_CYCLE_START_RATIO = 1 / 25
ONE_CYCLE_MOMENTUM = (0.85, 0.95)


class Schedule(Protocol):
    """Learning rate and momentum over a run."""

    @property
    def peak(self) -> float:
        """The highest learning rate."""

    def at(self, progress: float) -> float:
        """The learning rate at a part in [0, 1] of the run."""

    def momentum_at(self, progress: float) -> float | None:
        """The momentum there; None where the optimizer keeps its own."""


@dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """A quadratic rise, half a cosine, and a flat end.

    Attributes:
        peak: highest learning rate.
        warmup: part of the run in which it rises.
        final_phase: part of the run, at its end, in which it stays lowest.
        final_ratio: lowest learning rate as a part of the peak.

    Source: Loshchilov and Hutter, SGDR, 2017, eq. 5; warm-up and end as in YOLOX, sec. 2.1.
    """

    peak: float
    warmup: float
    final_phase: float
    final_ratio: float

    def at(self, progress: float) -> float:
        """The learning rate at a part in [0, 1] of the run."""
        if progress < self.warmup:
            return self.peak * max((progress / self.warmup) ** 2, 1e-4)
        lowest = self.peak * self.final_ratio
        span = 1 - self.warmup - self.final_phase
        if span <= 0 or progress >= 1 - self.final_phase:
            return lowest
        return lowest + (self.peak - lowest) * 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / span))

    def momentum_at(self, progress: float) -> float | None:
        """None: the optimizer keeps its own."""
        return None


@dataclass(frozen=True, kw_only=True)
class OneCycleSchedule:
    """One rise to a high peak and one fall far below the start, each half a cosine; the momentum goes the other way.

    Attributes:
        peak: highest learning rate.
        warmup: part of the run in which it rises.
        final_ratio: last learning rate as a part of the peak.

    Source: Smith and Topin, Super-Convergence, 2018, sec. 3; Smith, A disciplined approach, 2018, sec. 4.3, for the
    momentum.
    """

    peak: float
    warmup: float
    final_ratio: float

    def at(self, progress: float) -> float:
        """The learning rate at a part in [0, 1] of the run."""
        if progress < self.warmup:
            return _half_cosine(self.peak * ONE_CYCLE_START_RATIO, self.peak, progress / self.warmup)
        return _half_cosine(self.peak, self.peak * self.final_ratio, self._fall(progress))

    def momentum_at(self, progress: float) -> float | None:
        """The momentum at a part in [0, 1] of the run, lowest where the learning rate is highest."""
        low, high = ONE_CYCLE_MOMENTUM
        if progress < self.warmup:
            return _half_cosine(high, low, progress / self.warmup)
        return _half_cosine(low, high, self._fall(progress))

    def _fall(self, progress: float) -> float:
        return 1.0 if self.warmup >= 1 else (progress - self.warmup) / (1 - self.warmup)


def _half_cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * part))


class RunClock:
    """Tells which part of a run is done, by steps or by the clock, whichever is further.

    Args:
        total_steps: of all epochs.
        max_seconds: that training may take, the measurement at its end included; None for no limit.
        elapsed: seconds that an earlier process spent on the same run.
        now: a clock.
    """

    def __init__(
        self,
        total_steps: int,
        max_seconds: float | None,
        *,
        elapsed: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self.max_seconds = max_seconds
        self._now = now
        self._started = now() - elapsed
        self._last_measurement = 0.0

    def now(self) -> float:
        """Seconds on the run's clock."""
        return self._now()

    def elapsed(self) -> float:
        """Seconds since the run began, those of earlier processes included."""
        return self._now() - self._started

    def measurement_took(self, seconds: float) -> None:
        """Reserve as long for the last measurement as this one took."""
        self._last_measurement = seconds

    def progress(self, step: float) -> float:
        """The part in [0, 1] of the run that is done before this step (or between two)."""
        by_steps = step / self.total_steps
        if self.max_seconds is None:
            return min(1.0, by_steps)
        available = max(1e-9, self.max_seconds - self._last_measurement)
        return min(1.0, max(by_steps, self.elapsed() / available))

    def expected_steps(self, step: int) -> float:
        """The steps of the whole run at the pace so far; fewer than were asked for where the time ends it sooner."""
        progress = self.progress(step)
        return self.total_steps if self.max_seconds is None or progress <= 0 else step / progress

    def remaining(self, step: int) -> float | None:
        """Seconds to the end at the pace so far; None before the first step."""
        progress = self.progress(step)
        return None if progress <= 0 else self.elapsed() / progress * (1 - progress)
