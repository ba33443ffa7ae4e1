"""Copy-paste: boxes are cut out of one image and put into another.

Boxes, since the data sets have no masks: a strip of the donor's background comes along.

Source: Dwibedi et al., Cut, Paste and Learn, ICCV 2017, sec. 4; Ghiasi et al., Simple Copy-Paste, CVPR 2021.
"""

from __future__ import annotations

import numpy as np

from boxwright.core.boxes import FloatArray, box_areas
from boxwright.training.augment import LabeledImage

# A place where the pasted box would cover more than this part of an object is not taken.
MOST_COVERED = 0.3
MOST_PASTED = 4
TRIES = 10
_SMALLEST_SIDE = 4


def copy_paste(labeled: LabeledImage, donor: LabeledImage, random: np.random.Generator) -> LabeledImage:
    """Put some of a donor's boxes into an image, at random places where they hide no object.

    Args:
        labeled: the image; it is not changed.
        donor: another image, of any size.
        random: of the sample.

    Returns:
        The image with up to `MOST_PASTED` more objects.
    """
    image = labeled.image.copy()
    boxes = labeled.boxes_xyxy
    class_ids = labeled.class_ids
    chosen = random.permutation(len(donor.boxes_xyxy))[:MOST_PASTED]
    for index in chosen.tolist():
        x1, y1, x2, y2 = np.round(donor.boxes_xyxy[index]).astype(int).tolist()
        patch = donor.image[max(y1, 0) : y2, max(x1, 0) : x2]
        place = _find_place(patch.shape[:2], labeled.size_hw, boxes, random)
        if place is None:
            continue
        left, top = place
        image[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
        box = np.array([[left, top, left + patch.shape[1], top + patch.shape[0]]], dtype=np.float32)
        boxes = np.concatenate([boxes, box])
        class_ids = np.append(class_ids, donor.class_ids[index])
    return LabeledImage(image=image, boxes_xyxy=boxes, class_ids=class_ids)


def _find_place(
    patch_hw: tuple[int, ...], size_hw: tuple[int, int], boxes_xyxy: FloatArray, random: np.random.Generator
) -> tuple[int, int] | None:
    """Left and top of a free place, or None."""
    height, width = patch_hw
    if min(height, width) < _SMALLEST_SIDE or height > size_hw[0] or width > size_hw[1]:
        return None
    areas = np.maximum(box_areas(boxes_xyxy), 1e-6)
    for _ in range(TRIES):
        left, top = int(random.integers(size_hw[1] - width + 1)), int(random.integers(size_hw[0] - height + 1))
        low = np.maximum(boxes_xyxy[:, :2], [left, top])
        high = np.minimum(boxes_xyxy[:, 2:], [left + width, top + height])
        covered = np.maximum(high - low, 0).prod(axis=1) / areas
        if not (covered > MOST_COVERED).any():
            return left, top
    return None
