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
_WARM_UP_CALLS = 2
# More streams, larger batches, fewer streams, smaller batches.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))
# A trial that is not better than the best by this much is no step forward.
_GAIN = 1.02


def search_throughput(
    open_detector: OpenDetector,
    images: Sequence[Image],
    *,
    num_cores: int,
    num_threads: int = 0,
    streams: Sequence[int] = (),
    trial_s: float,
) -> Throughput:
    """Find the number of streams and the batch size with the most images a second, end to end.

    From one stream and the smallest batch it climbs to whichever neighbour is better, until none is; then the best is
    measured once more, for longer, since the best of many trials was lucky too.

    Args:
        open_detector: called for each stream with the threads it gets.
        images: (H, W, 3) uint8 BGR; at least one.
        num_cores: that the process may use.
        num_threads: of each detector; 0 shares the cores out among the streams.
        streams: numbers to try; powers of two up to the number of cores where empty.
        trial_s: seconds a trial.
    """
    with open_detector(num_threads) as probe:
        fixed, most = probe.backend.inputs["images"].shape[0], probe.batch_size
    batches = [fixed] if fixed is not None else [size for size in _BATCHES if size <= most] or [1]
    counts = sorted(set(streams)) or _powers_of_two(num_cores)
    tried: dict[tuple[int, int], Throughput] = {}

    def measure(count_index: int, batch_index: int, seconds: float) -> Throughput:
        count, batch = counts[count_index], batches[batch_index]
        # One stream leaves the threads to the engine, as the latency measurement does.
        threads = num_threads or (0 if count == 1 else max(1, num_cores // count))
        return _run_trial(open_detector, images, streams=count, batch=batch, num_threads=threads, trial_s=seconds)

    here = (0, 0)
    tried[here] = measure(*here, trial_s)
    for place in ((index, 0) for index in range(1, len(counts)) if streams):  # all that the user named
        tried[place] = measure(*place, trial_s)
        here = max(here, place, key=lambda entry: tried[entry].fps)
    while True:
        for step in _STEPS:
            place = (here[0] + step[0], here[1] + step[1])
            if place in tried or not (0 <= place[0] < len(counts) and 0 <= place[1] < len(batches)):
                continue
            tried[place] = measure(*place, trial_s)
            if tried[place].fps > _GAIN * tried[here].fps:
                here = place
                break
        else:
            return measure(*here, 2 * trial_s)


def _run_trial(
    open_detector: OpenDetector,
    images: Sequence[Image],
    *,
    streams: int,
    batch: int,
    num_threads: int,
    trial_s: float,
) -> Throughput:
    with contextlib.ExitStack() as stack:
        detectors = [stack.enter_context(open_detector(num_threads)) for _ in range(streams)]
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
