"""A data set for the colour cells model of `models_for_tests`."""

from __future__ import annotations

import json
from pathlib import Path

import cv2

from models_for_tests import CLASS_NAMES, COLUMNS, ROWS, box_of_cell, colour_image

# Cells far enough apart that their boxes do not overlap.
_CELLS = tuple((row, column) for row in range(0, ROWS, 3) for column in range(0, COLUMNS, 3))


def write_colour_data(root: Path, *, num_images: int = 6, cell_pixels: int = 12) -> Path:
    """Write a COCO data set, split "val": image i shows i % 4 cells."""
    images, annotations = [], []
    folder = root / "val2017"
    folder.mkdir(parents=True)
    for index in range(num_images):
        cells = [(*_CELLS[(index + cell) % len(_CELLS)], CLASS_NAMES[(index + cell) % 3]) for cell in range(index % 4)]
        picture = colour_image(*cells, cell_pixels=cell_pixels)
        file_name = f"{index:03}.png"
        cv2.imwrite(str(folder / file_name), picture)
        images.append({"id": index + 1, "file_name": file_name, "height": picture.shape[0], "width": picture.shape[1]})
        for row, column, colour in cells:
            left, top, right, bottom = box_of_cell(row, column, cell_pixels)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": CLASS_NAMES.index(colour) + 1,
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(CLASS_NAMES)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
    return root
