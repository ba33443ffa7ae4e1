"""`boxwright doctor`: what this machine has, what is missing and what brings it, and what is wrong with a data set."""

from __future__ import annotations

from boxwright.cli._options import JsonOption
from boxwright.cli._output import print_json


def doctor(as_json: JsonOption = False) -> None:
    """Say which engines, CPU features and GPUs are here, and which extra brings what is missing."""
    import boxwright

    report = {"boxwright": {"version": boxwright.__version__}}
    if as_json:
        print_json(report)
