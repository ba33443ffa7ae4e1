"""Images of which the class alone is known, trained on beside the images with boxes, as YOLO9000 is.

Source: Redmon and Farhadi, YOLO9000, CVPR 2017, sec. 4: joint classification and detection.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from boxwright.core.errors import DatasetError, InputError
from boxwright.models import DetectionModel
from boxwright.training.classification_data import ClassificationData, load_classification

_MOST_NAMED = 10


def load_class_images(
    folder: Path, split: str, module: DetectionModel, class_names: tuple[str, ...]
) -> ClassificationData:
    """Read classified images as further images of a detector's training.

    Args:
        folder: holds `<split>/<class>/` with images; or is a detection data set, of which the objects are cut out.
        split: its name.
        module: that is to learn from them.
        class_names: of the detector, in the order of its class ids.

    Returns:
        The images, with the detector's class ids.

    Raises:
        InputError: where the family cannot learn from such images.
        DatasetError: where the folder is neither, has no such split, or has classes that the detector does not know.
    """
    if not module.learns_class_only:
        raise InputError(
            "--class-images",
            expected="a family that learns classes without boxes, such as yolov2 or a .cfg with a [region]",
            got=module.variant,
            fix="leave out --class-images, or train another --model",
        )
    data = load_classification(folder, split)
    if data is None:
        raise DatasetError(
            f"--class-images {folder}", expected=f"a split {split!r}", got="none", fix=f"add {folder / split}/<class>/"
        )
    unknown = [name for name in data.class_names if name not in class_names]
    if unknown:
        more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
        raise DatasetError(
            f"--class-images {folder}",
            expected=f"classes among the {len(class_names)} of the detector",
            got=", ".join(unknown[:_MOST_NAMED]) + more,
            fix="name the folders as the classes are named, or leave those out",
        )
    samples = tuple(
        replace(sample, class_id=class_names.index(data.class_names[sample.class_id])) for sample in data.samples
    )
    return ClassificationData(class_names=class_names, samples=samples)
