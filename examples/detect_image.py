"""Detect objects in an image and save an annotated copy.

Run: python detect_image.py m.onnx photo.jpg annotated.png
"""

import sys

import cv2

from boxwright import Detector
from boxwright.core.draw import draw_detections


def main(model_path: str, image_path: str, output_path: str) -> None:
    with Detector(model_path) as detector:
        image = cv2.imread(image_path)
        detections = detector(image)
        for box, score, class_id in zip(detections.boxes_xyxy, detections.scores, detections.class_ids, strict=True):
            left, top, right, bottom = box.round(1)
            print(f"{detector.class_names[class_id]} {score:.2f}: {left}, {top} to {right}, {bottom}")
        cv2.imwrite(output_path, draw_detections(image, detections, detector.class_names))


if __name__ == "__main__":
    main(*sys.argv[1:4])
