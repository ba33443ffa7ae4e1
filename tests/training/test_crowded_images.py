"""What a run says of images with more objects than the network has queries."""

from pathlib import Path

import numpy as np
import pytest

from boxwright.data import Dataset, Sample
from boxwright.models import build_model
from boxwright.training.crowded_images import note_crowded_images


def dataset_of(*counts: int) -> Dataset:
    """Images with so many boxes, the last of each a crowd."""
    samples = tuple(
        Sample(
            image_path=Path(f"{number}.jpg"),
            image_id=number,
            size_hw=(96, 96),
            boxes_xyxy=np.tile(np.array([[1, 2, 30, 40]], np.float32), (count, 1)),
            class_ids=np.zeros(count, np.int64),
            is_crowd=np.arange(count) == count - 1,
            areas=np.full(count, 29 * 38, np.float32),
        )
        for number, count in enumerate(counts, start=1)
    )
    return Dataset(
        name="d",
        root=Path("d"),
        split="train",
        layout="coco",
        class_names=("a",),
        category_ids=(1,),
        samples=samples,
    )


@pytest.mark.parametrize(("variant", "queries"), [("detr-pico", 24), ("rtdetr-pico", 60)])
def test_images_with_more_objects_than_queries_are_counted(variant: str, queries: int) -> None:
    model = build_model(variant, num_classes=1)
    assert note_crowded_images(model, dataset_of(3, queries + 1, 0), (96, 96)) == ()
    (note,) = note_crowded_images(model, dataset_of(3, queries + 2, queries + 9), (96, 96))
    assert (
        f"2 of 3 training images have more objects (up to {queries + 8}) than {variant} has queries ({queries})" in note
    )


def test_others_have_no_such_bound() -> None:
    assert note_crowded_images(build_model("yolox-pico", num_classes=1), dataset_of(5000), (96, 96)) == ()
