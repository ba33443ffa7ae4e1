"""The process of one candidate: `python -m boxwright.bench.worker`, driven by `CandidateProcess`.

Requests come as JSON lines on stdin, replies go as JSON lines to what was stdout; whatever else is printed goes to
stderr. What is imported here counts as the candidate's memory, so it is little.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import cv2
import numpy as np

from boxwright.bench.latency import LatencyProbe
from boxwright.bench.raw_engine import open_raw_engine
from boxwright.core.errors import BoxwrightError, ImageError, MissingDependencyError, UnsupportedError
from boxwright.core.files import atomic_file
from boxwright.core.images import Image, read_image
from boxwright.core.machine import num_usable_cores
from boxwright.runtimes.detector import Detector

Reply = dict[str, Any]
# Images that are detected in before the memory is read: enough for every buffer to be there.
_NUM_MEMORY_IMAGES = 8
_PARENT_CHECK_S = 1.0


class Worker:
    """Holds one candidate and does what is asked."""

    def __init__(self, send: Callable[[Reply], None], work_dir: Path) -> None:
        self._send = send
        self._work_dir = work_dir
        self._detector: Detector | None = None
        self._probe: LatencyProbe | None = None
        self._model = ""
        self._num_threads = 0
        self._image_paths: list[str] = []
        self._open_detector: Callable[[int], Detector]

    def open(
        self,
        model: str,
        opener: str,
        arguments: dict[str, Any],
        cores: list[int],
        num_threads: int,
        image_paths: list[str],
    ) -> Reply:
        """Open the model, detect in a few images, and say how long that took and how much memory."""
        if cores:
            os.sched_setaffinity(0, cores)
        if num_threads > 0:
            cv2.setNumThreads(num_threads)
        self._model, self._num_threads, self._image_paths = model, num_threads, image_paths
        module_name, _, function = opener.partition(":")
        started = time.perf_counter()
        opener_function = getattr(importlib.import_module(module_name), function)
        self._open_detector = lambda threads: opener_function(model, num_threads=threads, **arguments)
        self._detector = self._open_detector(num_threads)
        loaded = time.perf_counter()
        reply = self._describe(self._detector)
        first_inference_ms, read_ms = self._detect_in_files(self._detector, image_paths[:_NUM_MEMORY_IMAGES])
        return {
            **reply,
            "load_s": loaded - started,
            "first_inference_ms": first_inference_ms,
            "read_ms": read_ms,
            "peak_rss_mb": peak_rss_mb(),
            "pid": os.getpid(),
        }

    def predict(self, image_paths: list[str], target: str) -> Reply:
        """Detect in all images and write what was found to an .npz file; say which images could not be used."""
        detector = self._opened()
        boxes, scores, class_ids, counts = [], [], [], []
        unreadable: list[tuple[int, str]] = []
        for index, path in enumerate(image_paths):
            try:
                found = detector(read_image(path))
            except ImageError as error:
                unreadable.append((index, error.got))
                counts.append(0)
            else:
                boxes.append(found.boxes_xyxy)
                scores.append(found.scores)
                class_ids.append(found.class_ids)
                counts.append(len(found))
            self._send({"progress": index + 1})
        with atomic_file(target) as temporary:
            np.savez(
                temporary,
                counts=np.array(counts, dtype=np.int64),
                boxes_xyxy=np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
                scores=np.concatenate([np.zeros(0, np.float32), *scores]),
                class_ids=np.concatenate([np.zeros(0, np.int32), *class_ids]),
            )
        return {"unreadable": unreadable}

    def warm_up(self, with_raw_engine: bool) -> Reply:
        """Load the images, open the bare engine where wanted, and run until times are stable."""
        detector = self._opened()
        raw_engine, note = None, None
        if with_raw_engine:
            try:
                raw_engine = open_raw_engine(
                    self._model, detector, num_threads=self._num_threads, work_dir=self._work_dir
                )
            except (UnsupportedError, MissingDependencyError) as error:
                note = str(error)
        images = self._usable_images(detector)
        self._probe = LatencyProbe(detector, images, raw_engine=raw_engine)
        return {"image_ms": self._probe.warm_up(), "num_images": len(images), "raw_engine_note": note}

    def block(self, start: int, count: int) -> Reply:
        """Time consecutive images."""
        assert self._probe is not None
        block = self._probe.run_block(start, count)
        return {
            "end_to_end": block.end_to_end,
            "preprocess": block.preprocess,
            "infer": block.infer,
            "postprocess": block.postprocess,
            "raw_engine": block.raw_engine,
            "overhead": block.overhead(),
        }

    def search_throughput(self, streams: list[int], trial_s: float) -> Reply:
        """Find the best batch size and number of detectors side by side."""
        from boxwright.bench.throughput import search_throughput

        images = self._usable_images(self._opened())
        self._opened().close()
        found = search_throughput(
            self._open_detector,
            images,
            num_cores=num_usable_cores(),
            num_threads=self._num_threads,
            streams=streams,
            trial_s=trial_s,
        )
        return {"fps": found.fps, "batch": found.batch, "streams": found.streams}

    def run_scenario(self, image_paths: list[str], log_dir: str, settings: dict[str, Any]) -> Reply:
        """Let MLPerf's LoadGen ask."""
        from boxwright.bench.scenarios import ScenarioSettings, run_loadgen

        scenario = ScenarioSettings(**settings)
        self._opened().close()
        # One stream leaves the threads to the engine or the user; several share the cores out.
        shared = 0 if scenario.streams == 1 else max(1, num_usable_cores() // scenario.streams)
        return run_loadgen(
            lambda: self._open_detector(self._num_threads or shared), image_paths, scenario, Path(log_dir)
        )

    def close(self) -> Reply:
        """Let everything go."""
        if self._detector is not None:
            self._detector.close()
        return {}

    def _opened(self) -> Detector:
        assert self._detector is not None
        return self._detector

    def _describe(self, detector: Detector) -> Reply:
        manifest = detector.manifest
        return {
            "backend": detector.backend.name,
            "device": detector.backend.device,
            "precision": detector.precision,
            "variant": manifest.variant,
            "imgsz": manifest.preprocess.size_hw,
            "class_names": detector.class_names,
            "conf": detector.score_threshold,
            "iou": detector.iou_threshold,
            "max_det": manifest.decode.max_detections,
        }

    def _detect_in_files(self, detector: Detector, paths: Sequence[str]) -> tuple[float | None, list[float]]:
        """Time of the first image that can be used, and of reading each."""
        first_ms: float | None = None
        read_ms: list[float] = []
        for path in paths:
            try:
                started = time.perf_counter()
                image = read_image(path)
                read_ms.append((time.perf_counter() - started) * 1e3)
                started = time.perf_counter()
                detector(image)
            except ImageError:  # reported by `predict`, which goes through all images
                continue
            if first_ms is None:
                first_ms = (time.perf_counter() - started) * 1e3
        return first_ms, read_ms

    def _usable_images(self, detector: Detector) -> list[Image]:
        images = []
        for path in self._image_paths:
            try:
                image = read_image(path)
                detector.preprocess([image])
            except ImageError:
                continue
            images.append(image)
        return images


def peak_rss_mb() -> float:
    """The most memory that this process has had, in 10^6 bytes."""
    try:
        # The kernel's count for this program; getrusage would also count what its parent had before exec.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def serve(requests: TextIO, replies: TextIO, work_dir: Path) -> None:
    """Answer requests until there are no more; what is written on the way goes into `work_dir`."""

    def send(reply: Reply) -> None:
        replies.write(json.dumps(reply) + "\n")
        replies.flush()

    worker = Worker(send, work_dir)
    try:
        for line in requests:
            request = json.loads(line)
            try:
                send({"reply": getattr(worker, request.pop("do"))(**request)})
            except BoxwrightError as error:
                is_unsupported = isinstance(error, (UnsupportedError, MissingDependencyError))
                send({"error": "unsupported" if is_unsupported else "failed", "message": str(error)})
            except Exception as error:  # engines raise what they like; it becomes the row's reason
                traceback.print_exc()
                send({"error": "failed", "message": " ".join(f"{type(error).__name__}: {error}".split())})
    finally:
        worker.close()


def _end_with_parent(parent: int, work_dir: Path) -> None:
    """End in the middle of a request too where the benchmark was killed, and leave nothing behind."""
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    shutil.rmtree(work_dir, ignore_errors=True)
    os._exit(1)


def main() -> None:
    """Turn stdout to stderr, so that no library can write between the replies, and serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    work_dir = Path(sys.argv[1])
    threading.Thread(target=_end_with_parent, args=(os.getppid(), work_dir), daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        serve(sys.stdin, replies, work_dir)


if __name__ == "__main__":
    main()
