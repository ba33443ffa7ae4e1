"""A name for what a data set contains, wherever it lies."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from boxwright.core.errors import DatasetError
from boxwright.data.dataset import Dataset


def content_sha256(dataset: Dataset) -> str:
    """SHA-256 over the class names and, of each sample, the image file's bytes and the boxes.

    The order of the samples, their names and the layout do not count, so that a copy in another layout keeps the hash.

    Args:
        dataset: its images must be readable files; they are not decoded.

    Returns:
        64 hexadecimal digits.

    Raises:
        DatasetError: where an image file cannot be read.
    """
    rows = sorted(_sample_digests(dataset))
    content = json.dumps({"class_names": dataset.class_names, "samples": rows}, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _sample_digests(dataset: Dataset) -> list[tuple[str, str]]:
    digests = []
    for sample in dataset.samples:
        image = hashlib.sha256(_read_bytes(sample.image_path)).hexdigest()
        boxes = hashlib.sha256()
        # Little-endian whatever the machine.
        for array, dtype in ((sample.boxes_xyxy, "<f4"), (sample.class_ids, "<i8"), (sample.is_crowd, "u1")):
            boxes.update(array.astype(dtype).tobytes())
        digests.append((image, boxes.hexdigest()))
    return digests


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(
            str(path),
            expected="an image file that can be read",
            got=error.strerror or type(error).__name__,
            fix="restore it, or read the data set again",
        ) from error
