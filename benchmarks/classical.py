"""OpenCV's face cascade and people detector on real photographs: called directly, and through `Detector`.

    python benchmarks/classical.py ../shared/data/coco-tiny/val2017

Compares box for box, and times both in turn on every image, on one thread.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from boxwright import Detector
from boxwright.core.images import read_image

Boxes = list[tuple[int, ...]]


def main(folder: Path) -> None:
    """Print a row a detector."""
    cv2.setNumThreads(1)
    faces = Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"
    cascade = cv2.CascadeClassifier(str(faces))
    hog = cv2.HOGDescriptor()
    hog.setSVMDetector(cv2.HOGDescriptor.getDefaultPeopleDetector())
    with tempfile.TemporaryDirectory() as work:
        people = Path(work) / "person.xml"
        hog.save(str(people))
        print("| file | boxes of OpenCV | images with other boxes | OpenCV ms | Detector ms |")
        print("| --- | --- | --- | --- | --- |")
        for path, ask in ((faces, cascade.detectMultiScale), (people, lambda image: hog.detectMultiScale(image)[0])):
            with Detector(path) as detector:
                _compare(path.name, ask, detector, sorted(folder.glob("*.jpg")))


def _compare(name: str, ask: Callable[[Any], Any], detector: Detector, files: list[Path]) -> None:
    num_boxes = num_other = 0
    times_ms: list[tuple[float, float]] = []
    for file in files:
        image = read_image(file)
        started = time.perf_counter()
        boxes_xywh = np.asarray(ask(image)).reshape(-1, 4)
        asked = time.perf_counter()
        found = detector(image)
        finished = time.perf_counter()
        times_ms.append(((asked - started) * 1e3, (finished - asked) * 1e3))
        expected: Boxes = sorted((int(x), int(y), int(x + w), int(y + h)) for x, y, w, h in boxes_xywh)
        num_boxes += len(expected)
        num_other += expected != sorted(tuple(map(int, box)) for box in found.boxes_xyxy)
    opencv_ms, ours_ms = np.median(times_ms, axis=0)
    print(f"| {name} | {num_boxes} | {num_other} of {len(files)} | {opencv_ms:.1f} | {ours_ms:.1f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
