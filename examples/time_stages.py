"""Time the three stages of detection one by one.

Run: python time_stages.py m.onnx photo.jpg
"""

import sys
import time

import cv2

from boxwright import Detector

NUM_RUNS = 100


def main(model_path: str, image_path: str) -> None:
    image = cv2.imread(image_path)
    seconds = {"preprocess": 0.0, "infer": 0.0, "postprocess": 0.0}
    with Detector(model_path) as detector:
        for _ in range(10):  # engines need a few runs to settle
            detector(image)
        for _ in range(NUM_RUNS):
            started = time.perf_counter()
            batch = detector.preprocess([image])
            preprocessed = time.perf_counter()
            outputs = detector.infer(batch)
            inferred = time.perf_counter()
            detector.postprocess(outputs, batch.transforms)
            seconds["preprocess"] += preprocessed - started
            seconds["infer"] += inferred - preprocessed
            seconds["postprocess"] += time.perf_counter() - inferred
    for stage, total in seconds.items():
        print(f"{stage:12} {total / NUM_RUNS * 1e3:.2f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:3])
