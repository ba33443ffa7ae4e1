"""Count the objects of each class in every frame of a video or camera.

Run: python count_in_video.py m.onnx clip.mp4
"""

import sys
from collections import Counter

from boxwright import Detector


def main(model_path: str, source: str) -> None:
    with Detector(model_path, conf=0.4) as detector:
        for item in detector.stream(source):
            if item.detections is None:
                print(f"{item.name}: {item.error}", file=sys.stderr)
                continue
            counts = Counter(detector.class_names[class_id] for class_id in item.detections.class_ids)
            print(f"{item.name}: {dict(counts)}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
