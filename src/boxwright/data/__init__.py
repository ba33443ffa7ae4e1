"""Data sets: COCO, PASCAL VOC and YOLO readers, their check, and the generated shapes."""

from boxwright.data.check import Report, check_dataset
from boxwright.data.dataset import Dataset, Sample
from boxwright.data.hashing import content_sha256
from boxwright.data.layouts import list_splits, load_dataset
from boxwright.data.problems import Problem
from boxwright.data.shapes import generate_shapes

__all__ = [
    "Dataset",
    "Problem",
    "Report",
    "Sample",
    "check_dataset",
    "content_sha256",
    "generate_shapes",
    "list_splits",
    "load_dataset",
]
