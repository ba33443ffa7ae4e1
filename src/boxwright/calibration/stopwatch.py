"""How long an engine takes for an image, measured in turns with the float model.

Machines speed up and slow down while a search runs, so a candidate's time is its ratio to the float model's, block by
block, times what the float model took when nothing else was compared.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from boxwright.calibration.sessions import Tensors
from boxwright.core.timing import let_threads_sleep
from boxwright.runtimes.backend import Backend

_BLOCK_S = 0.12
_FEWEST_RUNS = 3
_ROUNDS = 5
# Of being taken for faster by luck alone.
_CHANCE = 0.011
_LEAST_GAIN = 0.02


def measure_in_turns(backends: Sequence[Backend], inputs: Tensors, *, rounds: int = _ROUNDS) -> list[float]:
    """Milliseconds a run of each engine, of its blocks what is `typical`; see `blocks_in_turns`."""
    return [typical(blocks) for blocks in blocks_in_turns(backends, inputs, rounds=rounds)]


def typical(blocks: Sequence[float]) -> float:
    """The lowest quartile: what disturbs a machine makes runs slower, so the fast blocks tell what an engine can do."""
    return float(np.quantile(blocks, 0.25))


def is_surely_faster(blocks: Sequence[float], others: Sequence[float]) -> bool:
    """Whether an engine is faster than another beyond the noise of blocks that both took in the same rounds.

    The median of the ratios round by round must lie below 1 with 99 %, for which 10 rounds allow one that does not, and
    what is typical by more than two openings of one model differ.
    """
    ratios = [own / other for own, other in zip(blocks, others, strict=True)]
    exceptions = sum(ratio >= 1 for ratio in ratios)
    chance = sum(math.comb(len(ratios), count) for count in range(exceptions + 1)) / 2 ** len(ratios)
    return chance < _CHANCE and typical(blocks) < (1 - _LEAST_GAIN) * typical(others)


def blocks_in_turns(backends: Sequence[Backend], inputs: Tensors, *, rounds: int) -> list[list[float]]:
    """Milliseconds a run of each engine, the medians of its blocks round by round.

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
    return times


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
