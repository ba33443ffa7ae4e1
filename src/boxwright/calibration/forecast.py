"""How long a search will still take: how many measurements of each kind are to come, by what the last ones took."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

# In full with mAP and time; for the ranking; of one layer alone.
Kind = Literal["full", "ranking", "layer"]
_LAST = 8


class Forecast:
    """Counts measurements as they are made; what is taken from an earlier run counts with the little that it takes.

    Kinds that none was made of yet are taken to last as long for an image as those that some were made of.
    """

    def __init__(self) -> None:
        self._to_come: dict[Kind, int] = {}
        self._num_images: dict[Kind, int] = {}
        self._last: dict[Kind, deque[tuple[float, int]]] = {}

    def expect(self, kind: Kind, count: int, *, num_images: int) -> None:
        """So many are to come from now on.

        Args:
            kind: of measurement.
            count: of them.
            num_images: that each is made on.
        """
        self._to_come[kind], self._num_images[kind] = count, num_images

    def note(self, kind: Kind, seconds: float, *, num_images: int) -> None:
        """One was made."""
        self._last.setdefault(kind, deque(maxlen=_LAST)).append((seconds, num_images))
        self._to_come[kind] = max(self._to_come.get(kind, 0) - 1, 0)

    @property
    def seconds_left(self) -> float:
        """Of the whole; 0 as long as nothing was measured."""
        return sum(count * self._seconds_each(kind) for kind, count in self._to_come.items() if count)

    def _seconds_each(self, kind: Kind) -> float:
        noted = self._last.get(kind) or [entry for entries in self._last.values() for entry in entries]
        images = sum(num_images for _, num_images in noted)
        return self._num_images[kind] * sum(seconds for seconds, _ in noted) / images if images else 0.0


class WholeSearch:
    """Passes on what searches report, and adds seconds done and seconds in all of the searches together.

    Searches that were not begun are taken to last as long as the one that runs.

    Args:
        report: called with a phase, what is done of it and its size.
        num_searches: one after another.
        deadline: of all of them, of `time.monotonic`.
    """

    PHASE = "the whole search (seconds)"

    def __init__(self, report: Callable[[str, int, int], None], *, num_searches: int, deadline: float) -> None:
        self._report = report
        self._later = num_searches
        self._deadline = deadline
        self._started = self._began = time.monotonic()
        self._seconds_left: Callable[[], float] = lambda: 0.0

    def begin(self, seconds_left: Callable[[], float]) -> None:
        """The next search begins; it tells how long it will still take, 0 where it cannot know yet."""
        self._later -= 1
        self._began = time.monotonic()
        self._seconds_left = seconds_left

    def begin_end(self, seconds: float) -> None:
        """All searches are done but for what takes these seconds, about."""
        began = time.monotonic()
        self._later = 0
        self._seconds_left = lambda: max(1.0, seconds - (time.monotonic() - began))

    def __call__(self, phase: str, done: int, total: int) -> None:
        self._report(phase, done, total)
        left = self._seconds_left()
        if left > 0:
            now = time.monotonic()
            left = left + self._later * (now - self._began + left)
            left = min(left, max(1.0, self._deadline - now))
            self._report(self.PHASE, round(now - self._started), round(now - self._started + left))

    def end(self) -> None:
        """All searches are over."""
        seconds = max(1, round(time.monotonic() - self._started))
        self._seconds_left = lambda: 0.0
        self._report(self.PHASE, seconds, seconds)
