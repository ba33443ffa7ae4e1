"""How long an engine takes for an image, measured in turns with the float model.

Machines speed up and slow down while a search runs, so a candidate's time is its ratio to the float model's, block by
block, times what the float model took when nothing else was compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from boxwright.calibration.sessions import Tensors
from boxwright.core.timing import let_threads_sleep
from boxwright.runtimes.backend import Backend

_BLOCK_S = 0.12
_FEWEST_RUNS = 3
_ROUNDS = 5


def measure_in_turns(backends: Sequence[Backend], inputs: Tensors, *, rounds: int = _ROUNDS) -> list[float]:
    """Milliseconds a run of each engine, the lowest quartile of its blocks' medians.

    What disturbs a machine makes runs slower, never faster, so the fast blocks tell what the engine can do.

    Args:
        backends: opened models with the same inputs.
        inputs: of one run.
        rounds: that each backend takes a block in.
    """
    for backend in backends:
        backend.run(inputs)
    times: list[list[float]] = [[] for _ in backends]
    for index in range(rounds):
        for position in range(len(backends)):
            chosen = (position + index) % len(backends)
            times[chosen].append(_block(backends[chosen], inputs, _BLOCK_S))
    return [float(np.quantile(blocks, 0.25)) for blocks in times]


def _block(backend: Backend, inputs: Tensors, seconds: float) -> float:
    """Median of the runs of a block, in milliseconds, after one that is not counted."""
    runs: list[float] = []
    let_threads_sleep()
    backend.run(inputs)
    end = time.perf_counter() + seconds
    while len(runs) < _FEWEST_RUNS or time.perf_counter() < end:
        start = time.perf_counter()
        backend.run(inputs)
        runs.append((time.perf_counter() - start) * 1e3)
    return float(np.median(runs))
