"""Timing a detector within one process: end to end, by stage, and the bare engine beside it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boxwright.core.errors import InputError
from boxwright.core.images import Image
from boxwright.core.timing import let_threads_sleep
from boxwright.runtimes.backend import Backend, Tensors
from boxwright.runtimes.detector import Detector

# Warm-up ends when the median of a window of images stops changing, or after so long.
_WARM_UP_WINDOW = 8
_WARM_UP_TOLERANCE = 0.03
_WARM_UP_MIN_S = 0.5
_WARM_UP_MAX_S = 10.0
# Discarded before each series: the caches still hold what ran before.
SETTLE_IMAGES = 2
_MIN_BLOCK_IMAGES = 2


@dataclass(frozen=True, kw_only=True)
class Block:
    """Times of consecutive images, in milliseconds an image.

    Attributes:
        end_to_end: of calling the detector with an image.
        preprocess: of that stage alone, in a second pass over the same images.
        infer: of that stage.
        postprocess: of that stage.
        raw_engine: of the bare engine on the same inputs, in a third pass; empty where there is none.
    """

    end_to_end: tuple[float, ...]
    preprocess: tuple[float, ...]
    infer: tuple[float, ...]
    postprocess: tuple[float, ...]
    raw_engine: tuple[float, ...] = ()

    def median_ms(self) -> float:
        """Of the end-to-end times."""
        return float(np.median(self.end_to_end))

    def overhead(self) -> float:
        """The share of the end-to-end time that no stage accounts for."""
        stages = np.add(np.add(self.preprocess, self.infer), self.postprocess)
        return float(1 - np.median(stages / np.array(self.end_to_end)))


@dataclass(frozen=True, kw_only=True)
class LatencySample:
    """What `measure_latency` gives: medians in milliseconds an image, over all rounds.

    Attributes:
        latency_ms: end to end.
        preprocess_ms: of that stage.
        infer_ms: of that stage.
        postprocess_ms: of that stage.
        raw_engine_ms: of the bare engine, where one was given.
        rounds_ms: the end-to-end median of each round.
    """

    latency_ms: float
    preprocess_ms: float
    infer_ms: float
    postprocess_ms: float
    raw_engine_ms: float | None
    rounds_ms: tuple[float, ...]


class LatencyProbe:
    """Times a detector on the same images again and again."""

    def __init__(self, detector: Detector, images: Sequence[Image], *, raw_engine: Backend | None = None) -> None:
        """Prepare the measurement; nothing is run yet.

        Args:
            detector: to be timed.
            images: (H, W, 3) uint8 BGR; at least one.
            raw_engine: the bare engine on the graph up to the raw heads.
        """
        if not images:
            raise InputError("images to measure on", expected="at least one", got="none", fix="pass some images")
        self._detector = detector
        self._images = list(images)
        self._raw_engine = raw_engine
        self._raw_inputs: list[Tensors] = [] if raw_engine is None else [self._inputs_of(image) for image in images]

    def warm_up(self) -> float:
        """Run until the time an image is stable, and return that time in milliseconds."""
        times: list[float] = []
        started = time.perf_counter()
        while True:
            times.append(self._end_to_end(len(times)))
            elapsed = time.perf_counter() - started
            if elapsed > _WARM_UP_MAX_S or (elapsed > _WARM_UP_MIN_S and _is_stable(times)):
                return float(np.median(times[-_WARM_UP_WINDOW:]))

    def run_block(self, start: int, count: int) -> Block:
        """Time consecutive images, each series after a pause and two that are not counted.

        Args:
            start: index of the first; counted on beyond the last from the first again.
            count: how many.
        """
        counted = range(start, start + max(count, _MIN_BLOCK_IMAGES))
        settling = range(start - SETTLE_IMAGES, start)
        let_threads_sleep()
        for index in settling:
            self._end_to_end(index)
        end_to_end = [self._end_to_end(index) for index in counted]
        let_threads_sleep()
        for index in settling:
            self._stages(index)
        preprocess, infer, postprocess = zip(*[self._stages(index) for index in counted], strict=True)
        raw_engine: list[float] = []
        if self._raw_engine is not None:
            let_threads_sleep()
            for index in settling:
                self._raw(self._raw_engine, index)
            raw_engine = [self._raw(self._raw_engine, index) for index in counted]
        return Block(
            end_to_end=tuple(end_to_end),
            preprocess=preprocess,
            infer=infer,
            postprocess=postprocess,
            raw_engine=tuple(raw_engine),
        )

    def _end_to_end(self, index: int) -> float:
        image = self._images[index % len(self._images)]
        started = time.perf_counter()
        self._detector(image)
        return (time.perf_counter() - started) * 1e3

    def _stages(self, index: int) -> tuple[float, float, float]:
        detector, image = self._detector, self._images[index % len(self._images)]
        started = time.perf_counter()
        batch = detector.preprocess([image])
        preprocessed = time.perf_counter()
        outputs = detector.infer(batch)
        inferred = time.perf_counter()
        detector.postprocess(outputs, batch.transforms)
        finished = time.perf_counter()
        return (preprocessed - started) * 1e3, (inferred - preprocessed) * 1e3, (finished - inferred) * 1e3

    def _raw(self, raw_engine: Backend, index: int) -> float:
        inputs = self._raw_inputs[index % len(self._raw_inputs)]
        started = time.perf_counter()
        raw_engine.run(inputs)
        return (time.perf_counter() - started) * 1e3

    def _inputs_of(self, image: Image) -> Tensors:
        batch = self._detector.preprocess([image])
        inputs: Tensors = {"images": batch.images.copy()}  # the detector uses its own array again
        if batch.pixel_mask is not None:
            inputs["pixel_mask"] = batch.pixel_mask.astype(self._detector.backend.inputs["pixel_mask"].dtype)
        return inputs


def measure_latency(
    detector: Detector,
    images: Sequence[Image],
    *,
    rounds: int = 5,
    images_per_round: int = 16,
    raw_engine: Backend | None = None,
) -> LatencySample:
    """Time a detector in this process.

    `boxwright bench` does the same in processes of their own and in turn with other candidates, which is what numbers
    for others to read need.

    Args:
        detector: to be timed.
        images: (H, W, 3) uint8 BGR; at least one.
        rounds: how often a block of images is timed.
        images_per_round: in a block.
        raw_engine: the bare engine to be timed on the same inputs.
    """
    probe = LatencyProbe(detector, images, raw_engine=raw_engine)
    probe.warm_up()
    blocks = [probe.run_block(index * images_per_round, images_per_round) for index in range(rounds)]
    return LatencySample(
        latency_ms=_median([block.end_to_end for block in blocks]),
        preprocess_ms=_median([block.preprocess for block in blocks]),
        infer_ms=_median([block.infer for block in blocks]),
        postprocess_ms=_median([block.postprocess for block in blocks]),
        raw_engine_ms=None if raw_engine is None else _median([block.raw_engine for block in blocks]),
        rounds_ms=tuple(block.median_ms() for block in blocks),
    )


def _median(series: Sequence[Sequence[float]]) -> float:
    return float(np.median(np.concatenate([np.asarray(times) for times in series])))


def _is_stable(times: Sequence[float]) -> bool:
    if len(times) < 2 * _WARM_UP_WINDOW:
        return False
    last, before = np.median(times[-_WARM_UP_WINDOW:]), np.median(times[-2 * _WARM_UP_WINDOW : -_WARM_UP_WINDOW])
    return bool(abs(last - before) <= _WARM_UP_TOLERANCE * before)
