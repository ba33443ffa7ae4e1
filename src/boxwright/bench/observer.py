"""Who is told what a benchmark does while it runs."""

from __future__ import annotations

from collections.abc import Sequence

from boxwright.bench.results import Result


class Observer:
    """Told what a run does; this one does not listen."""

    def begin(self, phase: str, total: int) -> None:
        """A phase begins: "accuracy", counted in images, "latency", in rounds, or "throughput", in candidates."""

    def progress(self, phase: str, name: str, activity: str, done: int) -> None:
        """So many units of the phase are done; the candidate is doing that."""

    def rows(self, results: Sequence[Result]) -> None:
        """What is known of all candidates so far."""

    def note(self, text: str) -> None:
        """Something that the user should know at once."""
