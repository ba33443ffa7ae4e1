"""How many images a second a machine can do, by trying numbers of detectors side by side and batch sizes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

from boxwright.bench.results import Throughput
from boxwright.core.images import Image
from boxwright.runtimes.detector import Detector

# Opens another detector of the same model with so many threads.
OpenDetector = Callable[[int], Detector]
_BATCHES = (1, 2, 4, 8, 16)
_TRIAL_S = 1.5
_WARM_UP_CALLS = 2
# A trial that is not better than the best by this much ends the search in its direction.
_GAIN = 1.02


def search_throughput(
    open_detector: OpenDetector,
    images: Sequence[Image],
    *,
    num_cores: int,
    streams: Sequence[int] = (),
    trial_s: float = _TRIAL_S,
) -> Throughput:
    """Find the number of streams and the batch size with the most images a second, end to end.

    First the streams grow at the smallest batch, then the batch at the best number of streams.

    Args:
        open_detector: called for each stream; the cores are shared out among them.
        images: (H, W, 3) uint8 BGR; at least one.
        num_cores: that the process may use.
        streams: numbers to try; powers of two up to the number of cores where empty.
        trial_s: seconds a trial.
    """
    with open_detector(0) as probe:
        fixed, most = probe.backend.inputs["images"].shape[0], probe.batch_size
    batches = [fixed] if fixed is not None else [size for size in _BATCHES if size <= most]
    best = Throughput(fps=0.0, batch=batches[0], streams=1)
    for count in streams or _powers_of_two(num_cores):
        trial = _run_trial(open_detector, images, streams=count, batch=batches[0], num_cores=num_cores, trial_s=trial_s)
        if trial.fps < best.fps * _GAIN and not streams:
            break
        best = max(best, trial, key=lambda entry: entry.fps)
    for batch in batches[1:]:
        trial = _run_trial(
            open_detector, images, streams=best.streams, batch=batch, num_cores=num_cores, trial_s=trial_s
        )
        if trial.fps < best.fps * _GAIN:
            break
        best = trial
    return best


def _run_trial(
    open_detector: OpenDetector,
    images: Sequence[Image],
    *,
    streams: int,
    batch: int,
    num_cores: int,
    trial_s: float,
) -> Throughput:
    with contextlib.ExitStack() as stack:
        # One stream leaves the threads to the engine, as the latency measurement does.
        threads_each = 0 if streams == 1 else max(1, num_cores // streams)
        detectors = [stack.enter_context(open_detector(threads_each)) for _ in range(streams)]
        workers = [_Stream(detector, images, batch, offset) for offset, detector in enumerate(detectors)]
        for worker in workers:
            worker.warm_up()
        started = time.perf_counter()
        for worker in workers:
            worker.start(started + trial_s)
        for worker in workers:
            worker.join()
        for worker in workers:
            if worker.error is not None:
                raise worker.error
        rates = [worker.images_done / (worker.finished - started) for worker in workers]
    return Throughput(fps=sum(rates), batch=batch, streams=streams)


class _Stream:
    """A thread that detects in batches, one after another, until its time is over."""

    def __init__(self, detector: Detector, images: Sequence[Image], batch: int, offset: int) -> None:
        self.images_done = 0
        self.finished = 0.0
        self.error: Exception | None = None
        self._detector = detector
        self._batches = [
            [images[(start + offset + index) % len(images)] for index in range(batch)]
            for start in range(0, len(images), batch)
        ]
        self._batch = batch
        self._thread: threading.Thread | None = None

    def warm_up(self) -> None:
        for index in range(_WARM_UP_CALLS):
            self._detector(self._batches[index % len(self._batches)])

    def start(self, deadline: float) -> None:
        self._thread = threading.Thread(target=self._run, args=(deadline,), daemon=True)
        self._thread.start()

    def join(self) -> None:
        assert self._thread is not None
        self._thread.join()

    def _run(self, deadline: float) -> None:
        index = 0
        try:
            while time.perf_counter() < deadline:
                self._detector(self._batches[index % len(self._batches)])
                index += 1
                self.images_done += self._batch
        except Exception as error:  # raised again by the thread that waits
            self.error = error
        self.finished = time.perf_counter()


def _powers_of_two(largest: int) -> list[int]:
    return [1 << exponent for exponent in range(max(1, largest).bit_length())]
