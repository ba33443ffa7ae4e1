"""Detections, label lists, and files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from boxwright.core import files
from boxwright.core.detections import Detections
from boxwright.core.errors import InputError, OutputError
from boxwright.core.labels import load_labels


def two() -> Detections:
    return Detections(
        boxes_xyxy=np.array([[1, 2, 4, 8], [0, 0, 5, 5]], dtype=np.float32),
        scores=np.array([0.9, 0.25], dtype=np.float32),
        class_ids=np.array([1, 0], dtype=np.int32),
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"boxes_xyxy": np.zeros((3, 4), np.float32)}, "boxes_xyxy"),
        ({"boxes_xyxy": np.zeros((2, 4), np.float64)}, "boxes_xyxy"),
        ({"scores": np.array([0.1, 0.2], np.float32)}, "descending"),
        ({"scores": np.array([np.nan, 0.2], np.float32)}, "finite"),
        ({"class_ids": np.zeros(2, np.int64)}, "class_ids"),
        ({"scores": [0.9, 0.25]}, "scores|boxes"),
    ],
)
def test_detections_validate_themselves(changes: dict, named: str) -> None:
    good = {"boxes_xyxy": two().boxes_xyxy, "scores": two().scores, "class_ids": two().class_ids}
    with pytest.raises(InputError, match=named):
        Detections(**{**good, **changes})


def test_detections_sort_and_cut() -> None:
    detections = Detections.sorted(two().boxes_xyxy[::-1], two().scores[::-1], two().class_ids[::-1])
    assert detections.scores.tolist() == [np.float32(0.9), 0.25]
    assert len(detections.above(0.25)) == 1
    assert len(detections.above(0.95)) == 0
    assert len(Detections.empty()) == 0


def test_detections_as_coco_rows() -> None:
    rows = two().to_coco(7, category_ids=(11, 22))
    assert rows[0] == {"image_id": 7, "category_id": 22, "bbox": [1, 2, 3, 6], "score": pytest.approx(0.9)}
    assert two().to_coco(7)[1]["category_id"] == 0


def test_detections_as_json_name_the_class() -> None:
    assert two().to_jsonable(("cat", "dog"))[0]["class_name"] == "dog"
    assert "class_name" not in two().to_jsonable()[0]


def test_detections_as_supervision() -> None:
    pytest.importorskip("supervision")
    converted = two().to_supervision()
    np.testing.assert_array_equal(converted.xyxy, two().boxes_xyxy)
    assert converted.class_id.tolist() == [1, 0]


def test_labels(tmp_path: Path) -> None:
    assert len(load_labels("coco")) == 80 and len(load_labels("voc")) == 20
    assert load_labels("coco91")[90] == "toothbrush" and load_labels("coco91")[13] == "stop sign"
    assert load_labels("a, b,c") == ("a", "b", "c")
    file = tmp_path / "names.txt"
    file.write_text("cat\n\ndog\n", encoding="utf-8")
    assert load_labels(str(file)) == ("cat", "dog")


@pytest.mark.parametrize(
    ("labels", "named"), [("nowhere.txt", "separated by commas"), ("a,a", "'a' twice"), ("a,,b", "empty")]
)
def test_labels_that_do_not_work(labels: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        load_labels(labels)


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "new" / "m.txt"
    files.write_text(target, "first")
    with pytest.raises(RuntimeError, match="boom"), files.atomic_file(target) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".txt"
        raise RuntimeError("boom")
    assert target.read_text() == "first"
    assert [path.name for path in target.parent.iterdir()] == ["m.txt"]


def test_a_directory_is_whole_or_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with files.atomic_directory(target) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(RuntimeError), files.atomic_directory(target) as temporary:
        (temporary / "b").write_text("2")
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["a"]
    with files.atomic_directory(target) as temporary:
        (temporary / "b").write_text("2")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_paths_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for attempt in (
        lambda: files.write_text(file / "inside.txt", "y"),
        lambda: files.write_text(tmp_path, "y"),
        lambda: files.check_writable(file / "inside.txt"),
        lambda: files.atomic_directory(file).__enter__(),
    ):
        with pytest.raises(OutputError, match="expected a path that can be written"):
            attempt()
    assert file.read_text() == "x"


def test_a_check_leaves_the_folder_that_it_is_asked_to_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for parent in (tmp_path, tmp_path / "there"):
        files.check_writable(parent / "a" / "b" / "m.pt", leaves_folder=False)
        assert not (parent / "a").exists()
    assert (tmp_path / "there").is_dir()
    files.check_writable(tmp_path / "a" / "b" / "m.pt")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["a", "b", "there"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "m.bin"
    with pytest.raises(OutputError, match="free some space"), files.atomic_file(target) as temporary:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []
