"""The check that finds everything wrong with a data set, and the hash of its content."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from boxwright.core.errors import DatasetError, InputError
from boxwright.data import Problem, Report, check_dataset, content_sha256, load_dataset


@pytest.fixture
def broken_dir(shapes_dir: Path, tmp_path: Path) -> Path:
    """The shapes with six defects in the validation split: two of the annotations, four of the images."""
    root = tmp_path / "broken"
    shutil.copytree(shapes_dir, root)
    images = root / "val"
    data = (images / "val_00001.jpg").read_bytes()
    (images / "val_00001.jpg").write_bytes(data[: len(data) // 2])
    (images / "val_00002.jpg").write_bytes(b"")
    cv2.imwrite(str(images / "val_00003.jpg"), np.zeros((128, 96, 3), np.uint8))
    shutil.copy(images / "val_00004.jpg", images / "val_00005.jpg")
    (images / "val_00006.jpg").unlink()
    file = root / "annotations" / "instances_val.json"
    document = json.loads(file.read_text())
    row = next(row for row in document["annotations"] if row["image_id"] == 9)
    row["bbox"][2] = 0
    file.write_text(json.dumps(document))
    return root


EXPECTED = {
    "val/val_00001.jpg": ["undecodable_image"],
    "val/val_00002.jpg": ["undecodable_image"],
    "val/val_00003.jpg": ["size_mismatch"],
    "val/val_00005.jpg": ["duplicate_image"],
    "val/val_00006.jpg": ["missing_image"],
    "val/val_00008.jpg": ["zero_area_box"],
}


@pytest.mark.parametrize("num_workers", [1, 3])
def test_everything_wrong_is_found_and_said_by_file(broken_dir: Path, num_workers: int) -> None:
    dataset = load_dataset(broken_dir, "val")
    progress: list[tuple[int, int]] = []
    report = check_dataset(dataset, num_workers=num_workers, on_progress=lambda *state: progress.append(state))
    assert {file: [problem.kind for problem in rows] for file, rows in report.by_file().items()} == EXPECTED
    assert report.counts() == {
        "missing_image": 1,
        "undecodable_image": 2,
        "duplicate_image": 1,
        "size_mismatch": 1,
        "zero_area_box": 1,
    }
    assert [path.name for path in report.unusable_images] == ["val_00001.jpg", "val_00002.jpg"]
    assert progress == [(done, 15) for done in range(1, 16)]
    usable = dataset.without_images(report.unusable_images)
    assert (
        (report.num_images, report.num_boxes) == (13, usable.num_boxes) == (len(usable), sum(map(len, usable.samples)))
    )
    assert report.boxes_per_class == usable.boxes_per_class() and not report.is_clean
    details = {problem.file: problem.detail for problem in report.problems}
    assert "cut off" in details["val/val_00001.jpg"] and "empty" in details["val/val_00002.jpg"]
    assert "96x128, but 128x96" in details["val/val_00003.jpg"] and "EXIF" in details["val/val_00003.jpg"]
    assert "val/val_00004.jpg" in details["val/val_00005.jpg"]


def test_without_decoding_only_annotations_are_checked(broken_dir: Path) -> None:
    report = check_dataset(load_dataset(broken_dir, "val"), decode_images=False)
    assert sorted(report.counts()) == ["missing_image", "zero_area_box"] and report.num_images == 15


def test_the_report_as_text_and_json(broken_dir: Path) -> None:
    report = check_dataset(load_dataset(broken_dir, "val"))
    lines = report.to_lines()
    assert lines[0].startswith("broken (coco), val: 13 images") and "problems: 6" in lines
    assert "  2 images that do not decode (undecodable_image)" in lines
    for file, (kind,) in EXPECTED.items():
        assert sum(line.startswith(f"  {file}: {kind}: ") for line in lines) == 1
    short = report.to_lines(max_problems=2)
    assert len(short) == len(lines) - 4 + 1 and short[-1] == "  ... and 4 more"
    document = json.loads(json.dumps(report.to_jsonable()))
    assert document["num_problems"] == 6 and document["problem_counts"]["undecodable_image"] == 2
    assert {row["file"] for row in document["problems"]} == set(EXPECTED)


def test_a_sound_data_set_is_clean(shapes_dir: Path) -> None:
    for split, num_images in (("train", 24), ("val", 16), ("test", 4)):
        report = check_dataset(load_dataset(shapes_dir, split))
        assert report.is_clean and report.num_images == num_images and report.counts() == {}
        assert "problems: 0" in report.to_lines()


def test_an_interrupted_check_ends(shapes_dir: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_dataset(load_dataset(shapes_dir, "train"), num_workers=2, on_progress=interrupt)


def test_an_empty_data_set_can_be_reported(broken_dir: Path) -> None:
    shutil.rmtree(broken_dir / "val")
    report = check_dataset(load_dataset(broken_dir, "val", allow_empty=True))
    assert isinstance(report, Report) and report.num_images == 0 and report.counts() == {"missing_image": 16}


def test_a_problem_of_no_known_kind_is_refused() -> None:
    with pytest.raises(InputError, match="kind"):
        Problem(file="a", kind="strange", detail="b")  # type: ignore[arg-type]


def test_real_data_has_the_problems_it_has(shared_dir: Path) -> None:
    report = check_dataset(load_dataset(shared_dir / "data" / "bccd", "trainval"), num_workers=2)
    assert [(problem.file, problem.kind) for problem in report.problems] == [
        ("Annotations/BloodImage_00338.xml", "zero_area_box"),
        ("Annotations/BloodImage_00343.xml", "zero_area_box"),
    ]


# The hash


def test_the_hash_follows_the_content_alone(shapes_dir: Path, tmp_path: Path) -> None:
    dataset = load_dataset(shapes_dir, "val")
    digest = content_sha256(dataset)
    assert len(digest) == 64 and int(digest, 16) >= 0
    copy = tmp_path / "elsewhere"
    shutil.copytree(shapes_dir, copy)
    assert content_sha256(load_dataset(copy, "val")) == digest
    assert content_sha256(dataset.with_samples(reversed(dataset.samples))) == digest
    (copy / "val" / "val_00000.jpg").rename(copy / "val" / "renamed.jpg")
    document = (copy / "annotations" / "instances_val.json").read_text()
    (copy / "annotations" / "instances_val.json").write_text(document.replace("val_00000.jpg", "renamed.jpg"))
    assert content_sha256(load_dataset(copy, "val")) == digest


def test_the_hash_changes_with_every_part_of_the_content(shapes_dir: Path, tmp_path: Path) -> None:
    dataset = load_dataset(shapes_dir, "val")
    first = next(sample for sample in dataset.samples if len(sample) > 1)
    others = [sample for sample in dataset.samples if sample is not first]
    other_image = tmp_path / "other.jpg"
    other_image.write_bytes(first.image_path.read_bytes() + b"!")
    variants = [
        dataset,
        load_dataset(shapes_dir, "train"),
        dataset.with_samples(others),
        dataclasses.replace(dataset, class_names=("disc", *dataset.class_names[1:])),
        *(
            dataset.with_samples([dataclasses.replace(first, **change), *others])
            for change in (
                {"boxes_xyxy": first.boxes_xyxy + np.float32(0.01)},
                {"class_ids": (first.class_ids + 1) % 4},
                {"is_crowd": ~first.is_crowd},
                {"image_path": other_image},
            )
        ),
    ]
    assert len({content_sha256(variant) for variant in variants}) == len(variants)


def test_the_hash_of_a_file_that_is_gone(shapes_dir: Path) -> None:
    dataset = load_dataset(shapes_dir, "val")
    gone = dataclasses.replace(dataset.samples[0], image_path=Path("gone.jpg"))
    with pytest.raises(DatasetError, match=r"gone\.jpg"):
        content_sha256(dataset.with_samples([gone]))
