"""MLPerf LoadGen's scenarios, run through `Detector` in the candidate's own process.

LoadGen decides when which image is asked for and judges the result; its log files are the record.
"""

from __future__ import annotations

import array
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from boxwright.core.boxes import FloatArray
from boxwright.core.detections import Detections
from boxwright.core.errors import ImageError, InputError, MissingDependencyError
from boxwright.core.images import Image, read_image
from boxwright.runtimes.detector import Detector

Scenario = Literal["single-stream", "multi-stream", "offline", "server"]
Mode = Literal["performance", "accuracy"]
SCENARIOS: tuple[Scenario, ...] = ("single-stream", "multi-stream", "offline", "server")
# The names that LoadGen has for them, the number that each is judged by, and how many queries its statistics need.
_LOADGEN_NAMES = {
    "single-stream": "SingleStream",
    "multi-stream": "MultiStream",
    "offline": "Offline",
    "server": "Server",
}
_METRICS = {
    "single-stream": ("result_90.00_percentile_latency_ns", 1e-6, "ms, 90th percentile"),
    "multi-stream": ("result_99.00_percentile_per_query_latency_ns", 1e-6, "ms a query, 99th percentile"),
    "offline": ("result_samples_per_second", 1.0, "images a second"),
    "server": ("result_completed_samples_per_sec", 1.0, "images a second"),
}
_MIN_QUERIES = {"single-stream": 100, "multi-stream": 662, "offline": 1, "server": 500}
DETAIL_FILE, ACCURACY_FILE = "mlperf_log_detail.txt", "mlperf_log_accuracy.json"
_DETAIL_PREFIX = ":::MLLOG "
_ROW_LENGTH = 6  # x1, y1, x2, y2, score, class id
_MAX_IMAGES_IN_MEMORY = 256
_PROBE_IMAGES = 10
# Offline is one query; LoadGen must expect more than the machine does, or the query is over too soon.
_OFFLINE_MARGIN = 1.3
# Without a target, the server is asked for half of what it can do, and given ten times the latency of one image.
_SERVER_LOAD_SHARE = 0.5
_SERVER_LATENCY_FACTOR = 10.0


@dataclass(frozen=True, kw_only=True)
class ScenarioSettings:
    """How LoadGen asks.

    Attributes:
        scenario: one of `SCENARIOS`.
        mode: `performance` repeats images for a while, `accuracy` asks for each once.
        duration_s: at least so long, in performance mode.
        streams: detectors that work side by side.
        samples_per_query: images in a query of multi-stream.
        target_qps: images a second that arrive in server; None for half of what was found in a moment's measuring.
        target_latency_ms: that server must keep for 99 of 100; None for ten times that of one image.
    """

    scenario: Scenario
    mode: Mode = "performance"
    duration_s: float = 60.0
    streams: int = 1
    samples_per_query: int = 8
    target_qps: float | None = None
    target_latency_ms: float | None = None


def run_loadgen(
    open_detector: Callable[[], Detector], image_paths: Sequence[str], settings: ScenarioSettings, log_dir: Path
) -> dict[str, Any]:
    """Run a scenario.

    Args:
        open_detector: called for each stream.
        image_paths: of the data set, in its order.
        settings: how LoadGen asks.
        log_dir: an existing folder for LoadGen's logs.

    Returns:
        What LoadGen found, from its detail log, with the targets that it was given.

    Raises:
        MissingDependencyError: where the extra `bench` is not installed.
    """
    try:
        import mlperf_loadgen as loadgen
    except ImportError as error:
        raise MissingDependencyError("mlcommons-loadgen", extra="bench", needed_for="--scenario") from error
    detectors = [open_detector() for _ in range(settings.streams)]
    system = _System(loadgen, detectors, image_paths, keeps_detections=settings.mode == "accuracy")
    image_s = system.probe()
    test_settings, targets = _test_settings(loadgen, settings, image_s)
    log_settings = loadgen.LogSettings()
    log_settings.log_output.outdir = str(log_dir)
    log_settings.log_output.copy_summary_to_stdout = False
    log_settings.enable_trace = False
    in_memory = min(len(image_paths), _MAX_IMAGES_IN_MEMORY)
    under_test = loadgen.ConstructSUT(system.issue, lambda: None)
    library = loadgen.ConstructQSL(len(image_paths), in_memory, system.load, system.unload)
    try:
        loadgen.StartTestWithLogSettings(under_test, library, test_settings, log_settings)
    finally:
        loadgen.DestroyQSL(library)
        loadgen.DestroySUT(under_test)
        system.close()
    if system.error is not None:
        raise system.error
    return {**targets, **read_details(log_dir / DETAIL_FILE), "unreadable": sorted(system.unreadable.items())}


def read_details(path: Path) -> dict[str, Any]:
    """The results in LoadGen's detail log: every entry whose key begins with "result_", and the number of errors."""
    details: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(_DETAIL_PREFIX):
            entry = json.loads(line[len(_DETAIL_PREFIX) :])
            if entry["key"].startswith("result_") or entry["key"] == "num_errors":
                details[entry["key"]] = entry["value"]
    return details


def read_accuracy_log(path: Path) -> dict[int, Detections]:
    """The detections of each image, by its index, from LoadGen's accuracy log."""
    found = {}
    for entry in json.loads(path.read_text(encoding="utf-8")):
        rows = np.frombuffer(bytes.fromhex(entry["data"]), dtype=np.float32).reshape(-1, _ROW_LENGTH)
        found[int(entry["qsl_idx"])] = Detections(
            boxes_xyxy=rows[:, :4].copy(), scores=rows[:, 4].copy(), class_ids=rows[:, 5].astype(np.int32)
        )
    return found


def metric_of(scenario: Scenario, details: dict[str, Any]) -> tuple[float | None, str]:
    """The number that the scenario is judged by, and its unit."""
    key, factor, unit = _METRICS[scenario]
    value = details.get(key)
    return (None if value is None else float(value) * factor), unit


def parse_scenario(text: str) -> Scenario:
    """The scenario of that name.

    Raises:
        InputError: where there is none.
    """
    for scenario in SCENARIOS:
        if text == scenario:
            return scenario
    raise InputError("--scenario", expected="one of " + ", ".join(SCENARIOS), got=repr(text), fix="pass one of these")


def _test_settings(loadgen: Any, settings: ScenarioSettings, image_s: float) -> tuple[Any, dict[str, float]]:
    """LoadGen's settings, and the targets among them that were made up here or given."""
    result = loadgen.TestSettings()
    result.scenario = getattr(loadgen.TestScenario, _LOADGEN_NAMES[settings.scenario])
    result.mode = loadgen.TestMode.AccuracyOnly if settings.mode == "accuracy" else loadgen.TestMode.PerformanceOnly
    result.min_duration_ms = int(settings.duration_s * 1e3)
    result.min_query_count = _MIN_QUERIES[settings.scenario]
    images_per_s = settings.streams / image_s
    targets: dict[str, float] = {}
    if settings.scenario == "single-stream":
        result.single_stream_expected_latency_ns = int(image_s * 1e9)
    elif settings.scenario == "multi-stream":
        result.multi_stream_samples_per_query = settings.samples_per_query
        result.multi_stream_expected_latency_ns = int(settings.samples_per_query / images_per_s * 1e9)
        targets["samples_per_query"] = settings.samples_per_query
    elif settings.scenario == "offline":
        result.offline_expected_qps = images_per_s * _OFFLINE_MARGIN
    else:
        qps = settings.target_qps or _SERVER_LOAD_SHARE * images_per_s
        latency_ms = settings.target_latency_ms or _SERVER_LATENCY_FACTOR * image_s * 1e3
        result.server_target_qps = qps
        result.server_target_latency_ns = int(latency_ms * 1e6)
        targets |= {"target_qps": qps, "target_latency_ms": latency_ms}
    return result, targets


class _System:
    """What LoadGen tests: threads with a detector each, which take images from a queue."""

    def __init__(
        self, loadgen: Any, detectors: Sequence[Detector], image_paths: Sequence[str], *, keeps_detections: bool
    ) -> None:
        self.unreadable: dict[int, str] = {}
        self.error: Exception | None = None
        self._loadgen = loadgen
        self._detectors = detectors
        self._image_paths = image_paths
        self._keeps_detections = keeps_detections
        self._images: dict[int, Image | None] = {}
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, args=(entry,), daemon=True) for entry in detectors]
        for thread in self._threads:
            thread.start()

    def probe(self) -> float:
        """Seconds an image takes one detector, roughly; warms all of them up."""
        images = []
        for path in self._image_paths:
            try:
                images.append(read_image(path))
            except ImageError:
                continue
            if len(images) == _PROBE_IMAGES:
                break
        times = []
        for detector in self._detectors:
            for image in images:
                started = time.perf_counter()
                try:
                    detector(image)
                except ImageError:
                    continue
                times.append(time.perf_counter() - started)
        if not times:
            raise ImageError(
                "images", expected="some that can be used", got="none", fix="check them with 'boxwright doctor --data'"
            )
        return float(np.median(times))

    def load(self, indices: Sequence[int]) -> None:
        """Read images into memory; LoadGen does not count this."""
        for index in indices:
            try:
                self._images[index] = read_image(self._image_paths[index])
            except ImageError as error:
                self._images[index] = None
                self.unreadable[index] = error.got

    def unload(self, indices: Sequence[int]) -> None:
        """Forget images."""
        for index in indices:
            self._images.pop(index, None)

    def issue(self, samples: Sequence[Any]) -> None:
        """Take a query."""
        for sample in samples:
            self._queue.put(sample)

    def close(self) -> None:
        """End the threads, and close the detectors."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        for detector in self._detectors:
            detector.close()

    def _work(self, detector: Detector) -> None:
        while (sample := self._queue.get()) is not None:
            # A query that is never answered would hang LoadGen, so an error waits until its end.
            try:
                found = self._detect(detector, sample.index)
            except Exception as error:
                self.error, found = error, Detections.empty()
            rows = self._to_rows(found)
            address, count = rows.buffer_info()
            response = self._loadgen.QuerySampleResponse(sample.id, address, count * rows.itemsize)
            self._loadgen.QuerySamplesComplete([response])

    def _detect(self, detector: Detector, index: int) -> Detections:
        image = self._images[index]
        if image is None:
            return Detections.empty()
        try:
            return detector(image)
        except ImageError as error:
            self.unreadable[index] = error.got
            return Detections.empty()

    def _to_rows(self, found: Detections) -> array.array[float]:
        """The detections in bytes that LoadGen keeps; in performance mode it keeps none."""
        if not self._keeps_detections:
            return array.array("f", [float(len(found))])
        columns = [found.boxes_xyxy, found.scores[:, None], found.class_ids[:, None].astype(np.float32)]
        rows: FloatArray = np.concatenate(columns, axis=1)  # (N, 6)
        return array.array("f", rows.ravel().tolist())
