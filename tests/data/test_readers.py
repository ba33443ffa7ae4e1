"""The three layouts: what is read of a sound data set, and what becomes of each thing that can be wrong with one."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from boxwright.core.errors import DatasetError, MissingDependencyError
from boxwright.data import Dataset, list_splits, load_dataset

HEIGHT, WIDTH = 60, 100


def write_image(path: Path, grey: int = 128, size_hw: tuple[int, int] = (HEIGHT, WIDTH)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size_hw, 3), grey, np.uint8))
    return path


def kinds(dataset: Dataset) -> list[tuple[str, str]]:
    return [(problem.file, problem.kind) for problem in dataset.problems]


# COCO


def coco_document() -> dict[str, Any]:
    """Two images, the second without boxes; categories in an order of their own, with gaps in their ids."""
    return {
        "images": [
            {"id": 70, "file_name": "a.png", "height": HEIGHT, "width": WIDTH},
            {"id": 9, "file_name": "b.png", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            {"id": 1, "image_id": 70, "category_id": 18, "bbox": [10, 20, 30.5, 25], "area": 500.25, "iscrowd": 0},
            {"id": 2, "image_id": 70, "category_id": 3, "bbox": [0, 0, 100, 60], "iscrowd": 1},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 44, "name": "fox"}],
    }


def write_coco(root: Path, document: Any, year: str = "2017", images: tuple[str, ...] = ("a.png", "b.png")) -> Path:
    for name in images:
        write_image(root / f"val{year}" / name)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    text = document if isinstance(document, str) else json.dumps(document)
    (root / "annotations" / f"instances_val{year}.json").write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("year", ["2017", ""])
def test_coco(tmp_path: Path, year: str) -> None:
    dataset = load_dataset(write_coco(tmp_path, coco_document(), year), "val")
    assert (dataset.layout, dataset.split, list_splits(tmp_path)) == ("coco", "val", ("val",))
    assert dataset.class_names == ("cat", "dog", "fox") and dataset.category_ids == (3, 18, 44)
    assert [sample.image_id for sample in dataset.samples] == [70, 9]
    assert dataset.problems == () and dataset.num_boxes == 2
    first, second = dataset.samples
    assert first.image_path == tmp_path / f"val{year}" / "a.png" and first.size_hw == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(first.boxes_xyxy, np.float32([[10, 20, 40.5, 45], [0, 0, 100, 60]]))
    np.testing.assert_array_equal(first.class_ids, [1, 0])
    np.testing.assert_array_equal(first.is_crowd, [False, True])
    np.testing.assert_array_equal(first.areas, np.float32([500.25, 6000]))
    assert second.boxes_xyxy.shape == (0, 4) and second.areas.shape == (0,)
    assert dataset.boxes_per_class() == {"cat": 1, "dog": 1, "fox": 0}


def test_coco_images_elsewhere(tmp_path: Path) -> None:
    document = coco_document()
    document["images"][1]["file_name"] = "other/b.png"
    write_coco(tmp_path, document, images=())
    write_image(tmp_path / "images" / "val2017" / "a.png")
    write_image(tmp_path / "other" / "b.png")
    paths = [sample.image_path for sample in load_dataset(tmp_path, "val").samples]
    assert paths == [tmp_path / "images" / "val2017" / "a.png", tmp_path / "other" / "b.png"]


def test_coco_in_the_order_of_a_model(tmp_path: Path) -> None:
    dataset = load_dataset(write_coco(tmp_path, coco_document()), "val", ("wolf", "dog", "fox"))
    assert dataset.class_names == ("wolf", "dog", "fox")
    assert dataset.category_ids[1:] == (18, 44) and dataset.category_ids[0] not in (3, 18, 44)
    np.testing.assert_array_equal(dataset.samples[0].class_ids, [1])
    assert kinds(dataset) == [("val2017/a.png", "unknown_category")]  # the cat


def test_a_model_s_other_classes_get_ids_that_the_file_does_not_use(tmp_path: Path) -> None:
    names = ["dog", *(f"other {index}" for index in range(60)), "cat", "dog"]
    dataset = load_dataset(write_coco(tmp_path, coco_document()), "val", names)
    assert dataset.category_ids[0] == 18 and dataset.category_ids[61] == 3
    assert len(set(dataset.category_ids)) == len(names) and min(dataset.category_ids[1:61]) > 44
    np.testing.assert_array_equal(dataset.samples[0].class_ids, [0, 61])  # of two equal names, the first


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Set the value at a path such as "annotations.0.bbox"; a list is appended to at "+"."""

    def apply(document: Any) -> None:
        *keys, last = path.split(".")
        for key in keys:
            document = document[int(key) if key.isdecimal() else key]
        if last == "+":
            document.append(value)
        elif value is None:
            del document[last]
        else:
            document[int(last) if last.isdecimal() else last] = value

    return apply


JSON_FILE, IMAGE_A = "annotations/instances_val2017.json", "val2017/a.png"


@pytest.mark.parametrize(
    ("defect", "expected", "num_samples", "num_boxes"),
    [
        pytest.param(change("annotations.0.bbox", [10, 20, 0, 5]), [(IMAGE_A, "zero_area_box")], 2, 1, id="no width"),
        pytest.param(change("annotations.0.bbox", [10, 20, 5, -1]), [(IMAGE_A, "zero_area_box")], 2, 1, id="negative"),
        pytest.param(change("annotations.0.bbox", [90, 5, 10.9, 5]), [], 2, 2, id="rounded over the edge"),
        pytest.param(
            change("annotations.0.bbox", [90, 5, 11.1, 5]), [(IMAGE_A, "box_outside_image")], 2, 2, id="over the edge"
        ),
        pytest.param(
            change("annotations.0.bbox", [100, 5, 9, 9]), [(IMAGE_A, "box_outside_image")], 2, 1, id="beside the image"
        ),
        pytest.param(
            change("annotations.0.bbox", [100.2, 5, 0.5, 9]),
            [(IMAGE_A, "box_outside_image")],
            2,
            1,
            id="just beside it",
        ),
        pytest.param(
            change("annotations.0.bbox", [1, 2, 3]), [(IMAGE_A, "malformed_annotation")], 2, 1, id="3 numbers"
        ),
        pytest.param(
            change("annotations.0.bbox", [1, 2, "3", 4]), [(IMAGE_A, "malformed_annotation")], 2, 1, id="text in a box"
        ),
        pytest.param(
            change("annotations.0.bbox", [1, 2, float("nan"), 4]), [(IMAGE_A, "malformed_annotation")], 2, 1, id="nan"
        ),
        pytest.param(
            change("annotations.0.bbox", [1, 2, float("inf"), 4]), [(IMAGE_A, "malformed_annotation")], 2, 1, id="inf"
        ),
        pytest.param(change("annotations.0.bbox", None), [(IMAGE_A, "malformed_annotation")], 2, 1, id="no box"),
        pytest.param(change("annotations.0.category_id", 5), [(IMAGE_A, "unknown_category")], 2, 1, id="category"),
        pytest.param(change("annotations.0.category_id", [5]), [(IMAGE_A, "unknown_category")], 2, 1, id="a list"),
        pytest.param(change("annotations.0.image_id", 5), [(JSON_FILE, "unknown_image")], 2, 1, id="image"),
        pytest.param(change("annotations.0.image_id", {}), [(JSON_FILE, "unknown_image")], 2, 1, id="image object"),
        pytest.param(change("annotations.0", 5), [(JSON_FILE, "malformed_annotation")], 2, 1, id="no object"),
        pytest.param(
            change("images.0.file_name", "x.png"), [("val2017/x.png", "missing_image")], 1, 0, id="missing image"
        ),
        pytest.param(
            change("images.+", {"id": 4, "file_name": "a.png"}), [(IMAGE_A, "duplicate_image")], 2, 2, id="file twice"
        ),
        pytest.param(
            change("images.+", {"id": 9, "file_name": "c.png"}),
            [("val2017/c.png", "duplicate_image")],
            2,
            2,
            id="id twice",
        ),
        pytest.param(
            change("images.+", {"id": 9}), [(JSON_FILE, "malformed_annotation")], 2, 2, id="image without name"
        ),
        pytest.param(
            change("categories.+", {"id": 3, "name": "x"}),
            [(JSON_FILE, "malformed_annotation")],
            2,
            2,
            id="category twice",
        ),
        pytest.param(change("images.0.height", None), [], 2, 2, id="no declared size"),
    ],
)
def test_coco_defects_are_reported_and_the_rest_is_used(
    tmp_path: Path,
    defect: Callable[[dict[str, Any]], None],
    expected: list[tuple[str, str]],
    num_samples: int,
    num_boxes: int,
) -> None:
    document = coco_document()
    defect(document)
    dataset = load_dataset(write_coco(tmp_path, document), "val")
    assert kinds(dataset) == expected
    assert (len(dataset), dataset.num_boxes) == (num_samples, num_boxes)
    for sample in dataset.samples:
        assert (sample.boxes_xyxy[:, 2:] > sample.boxes_xyxy[:, :2]).all()
        assert (sample.boxes_xyxy >= 0).all() and (sample.boxes_xyxy <= [WIDTH, HEIGHT, WIDTH, HEIGHT]).all()


def test_a_box_over_the_edge_is_clipped(tmp_path: Path) -> None:
    document = coco_document()
    document["annotations"][0]["bbox"] = [-20, 50, 300, 30]
    dataset = load_dataset(write_coco(tmp_path, document), "val")
    np.testing.assert_array_equal(dataset.samples[0].boxes_xyxy[0], np.float32([0, 50, 100, 60]))
    assert "(0, 50, 100, 60)" in dataset.problems[0].detail and "annotation 1" in dataset.problems[0].detail


def test_an_image_without_size_that_does_not_decode(tmp_path: Path) -> None:
    document = coco_document()
    del document["images"][0]["width"]
    write_coco(tmp_path, document)
    (tmp_path / "val2017" / "a.png").write_bytes(b"no image")
    dataset = load_dataset(tmp_path, "val")
    assert kinds(dataset) == [("val2017/a.png", "undecodable_image")] and len(dataset) == 1


def test_image_ids_that_are_text_become_positions(tmp_path: Path) -> None:
    document = coco_document()
    document["images"][0]["id"] = document["annotations"][0]["image_id"] = "seventy"
    document["annotations"].pop()
    dataset = load_dataset(write_coco(tmp_path, document), "val")
    assert [sample.image_id for sample in dataset.samples] == [1, 2] and dataset.num_boxes == 1


JUNK = (
    None,
    True,
    -1,
    0,
    10**400,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "3",
    "x" * 5000,
    "\0",
    [],
    [[]],
    {},
    {"id": 1},
)


def places_in(node: Any, path: str = "") -> list[str]:
    """The paths of all values within a document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in items for place in (f"{path}{key}", *places_in(value, f"{path}{key}."))]


def test_junk_anywhere_in_a_coco_file_is_reported_or_refused(tmp_path: Path) -> None:
    write_coco(tmp_path, coco_document())
    outcomes = {"used": 0, "refused": 0}
    for place in places_in(coco_document()):
        for junk in JUNK:
            document = coco_document()
            *keys, last = place.split(".")
            node: Any = document
            for key in keys:
                node = node[int(key) if key.isdecimal() else key]
            node[int(last) if last.isdecimal() else last] = junk
            (tmp_path / JSON_FILE).write_text(json.dumps(document))
            try:
                dataset = load_dataset(tmp_path, "val")
            except DatasetError:
                outcomes["refused"] += 1
                continue
            outcomes["used"] += 1
            for sample in dataset.samples:
                assert (
                    np.isfinite(sample.boxes_xyxy).all()
                    and (sample.areas > 0).all()
                    and np.isfinite(sample.areas).all()
                )
                assert (sample.boxes_xyxy[:, 2:] > sample.boxes_xyxy[:, :2]).all()
    assert outcomes["used"] > 300 and outcomes["refused"] >= 3 * 11


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("[" * 100_000, "COCO annotation file in JSON"),
        ("{", "COCO annotation file in JSON"),
        ("[1, 2]", "without images, annotations, categories"),
        ('{"images": [], "annotations": {}, "categories": []}', "without annotations"),
        ('{"images": [], "annotations": [], "categories": []}', "at least one class"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "got none, and 0 problems"),
    ],
)
def test_a_coco_file_that_cannot_be_used(tmp_path: Path, document: str, expected: str) -> None:
    with pytest.raises(DatasetError, match=expected) as caught:
        load_dataset(write_coco(tmp_path, document), "val")
    assert "\n" not in str(caught.value)


# PASCAL VOC

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult><part><name>head</name>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox></object>"""


def voc_object(name: str, *box: object, difficult: int = 0) -> str:
    return OBJECT.format(name=name, difficult=difficult, box=box)


def write_voc(
    root: Path, annotations: dict[str, str], size: str = f"<width>{WIDTH}</width><height>{HEIGHT}</height>"
) -> Path:
    for stem, objects in annotations.items():
        write_image(root / "JPEGImages" / f"{stem}.jpg")
        (root / "Annotations").mkdir(exist_ok=True)
        text = f"<annotation><size>{size}</size>{objects}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
    (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("\n".join(annotations) + "\n")
    return root


SOUND = {"one": voc_object("dog", 1, 2, 30, 40.5) + voc_object("cat", 5, 5, 9, 9, difficult=1), "two": ""}


def test_voc(tmp_path: Path) -> None:
    write_voc(tmp_path, SOUND | {"three": voc_object("ant", 1, 1, 5, 5)})
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("one  1\n two -1\n\n")
    dataset = load_dataset(tmp_path, "val")
    assert list_splits(tmp_path) == ("train", "val") and dataset.layout == "voc" and dataset.problems == ()
    assert dataset.class_names == ("ant", "cat", "dog")  # of all splits, without parts of objects
    assert dataset.category_ids == (1, 2, 3)
    assert [(sample.image_id, sample.image_path.name) for sample in dataset.samples] == [(1, "one.jpg"), (2, "two.jpg")]
    np.testing.assert_array_equal(dataset.samples[0].boxes_xyxy, np.float32([[1, 2, 30, 40.5], [5, 5, 9, 9]]))
    np.testing.assert_array_equal(dataset.samples[0].class_ids, [2, 1])
    np.testing.assert_array_equal(dataset.samples[0].is_crowd, [False, True])
    np.testing.assert_allclose(dataset.samples[0].areas, [29 * 38.5, 16])
    assert len(dataset.samples[1]) == 0


def test_voc_in_the_order_of_a_model(tmp_path: Path) -> None:
    dataset = load_dataset(write_voc(tmp_path, SOUND), "train", ["dog", "horse"])
    assert dataset.class_names == ("dog", "horse")
    np.testing.assert_array_equal(dataset.samples[0].class_ids, [0])
    assert kinds(dataset) == [("Annotations/one.xml", "unknown_category")]


@pytest.mark.parametrize("size", ["", "<width>0</width><height>0</height>", "<width>wide</width>"])
def test_voc_without_a_size_takes_the_image_s(tmp_path: Path, size: str) -> None:
    dataset = load_dataset(write_voc(tmp_path, SOUND, size), "train")
    assert dataset.samples[0].size_hw == (HEIGHT, WIDTH) and dataset.problems == ()


XML_ONE = "Annotations/one.xml"


def replace_object(*box: object) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        write_voc(root, SOUND | {"one": voc_object("dog", *box) + voc_object("dog", 1, 2, 3, 4)})

    return apply


@pytest.mark.parametrize(
    ("defect", "expected", "num_samples", "num_boxes"),
    [
        pytest.param(replace_object(7, 7, 7, 7), [(XML_ONE, "zero_area_box")], 2, 1, id="zero area"),
        pytest.param(replace_object(7, 7, "x", 9), [(XML_ONE, "malformed_annotation")], 2, 1, id="text"),
        pytest.param(replace_object(7, 7, "", 9), [(XML_ONE, "malformed_annotation")], 2, 1, id="empty"),
        pytest.param(replace_object(7, 7, "nan", 9), [(XML_ONE, "malformed_annotation")], 2, 1, id="nan"),
        pytest.param(replace_object(7, 7, 300, 9), [(XML_ONE, "box_outside_image")], 2, 2, id="outside"),
        pytest.param(
            lambda root: (root / "Annotations" / "one.xml").unlink(),
            [(XML_ONE, "missing_annotation")],
            1,
            0,
            id="no xml",
        ),
        pytest.param(
            lambda root: (root / "Annotations" / "one.xml").write_text("<annotation>"),
            [(XML_ONE, "malformed_annotation")],
            1,
            0,
            id="cut-off xml",
        ),
        pytest.param(
            lambda root: (root / "JPEGImages" / "one.jpg").unlink(),
            [("JPEGImages/one.jpg", "missing_image")],
            1,
            0,
            id="no image",
        ),
        pytest.param(
            lambda root: (root / "ImageSets" / "Main" / "train.txt").write_text("one\ntwo\none\n"),
            [("ImageSets/Main/train.txt", "duplicate_image")],
            2,
            2,
            id="listed twice",
        ),
        pytest.param(
            lambda root: (root / "JPEGImages" / "one.jpg").rename(root / "JPEGImages" / "one.JPG"), [], 2, 2, id="JPG"
        ),
    ],
)
def test_voc_defects_are_reported_and_the_rest_is_used(
    tmp_path: Path, defect: Callable[[Path], None], expected: list[tuple[str, str]], num_samples: int, num_boxes: int
) -> None:
    write_voc(tmp_path, {"unlisted": voc_object("dog", 1, 2, 3, 4)})  # names a class where the defect leaves none
    write_voc(tmp_path, SOUND)
    defect(tmp_path)
    dataset = load_dataset(tmp_path, "train")
    assert kinds(dataset) == expected
    assert (len(dataset), dataset.num_boxes) == (num_samples, num_boxes)


# YOLO


def write_yolo(root: Path, yaml: str, labels: dict[str, str], images: tuple[str, ...] = ("a", "b")) -> Path:
    for name in images:
        write_image(root / "images" / "val" / f"{name}.png")
    for name, text in labels.items():
        (root / "labels" / "val").mkdir(parents=True, exist_ok=True)
        (root / "labels" / "val" / f"{name}.txt").write_text(text)
    (root / "data.yaml").write_text(yaml, encoding="utf-8")
    return root


YAML = "path: .\ntrain: images/train\nval: images/val\ntest:\nnc: 2\nnames: [cat, dog]\ndownload: https://example.org\n"
LABELS = {"a": "1 0.5 0.5 0.2 0.5\n0 0.1 0.1 0.3 0.1 0.2 0.4\n"}


@pytest.mark.parametrize("names", ["[cat, dog]", "{0: cat, 1: dog}", "{1: dog, 0: cat}", "\n  - cat\n  - dog"])
def test_yolo(tmp_path: Path, names: str) -> None:
    write_yolo(tmp_path, YAML.replace("[cat, dog]", names), LABELS)
    dataset = load_dataset(tmp_path, "val")
    assert list_splits(tmp_path) == ("train", "val") and dataset.layout == "yolo" and dataset.problems == ()
    assert dataset.class_names == ("cat", "dog") and dataset.category_ids == (1, 2)
    assert [(sample.image_id, sample.image_path.name) for sample in dataset.samples] == [(1, "a.png"), (2, "b.png")]
    # A box, and the bounding box of a triangle.
    np.testing.assert_allclose(dataset.samples[0].boxes_xyxy, [[40, 15, 60, 45], [10, 6, 30, 24]], rtol=1e-6)
    np.testing.assert_array_equal(dataset.samples[0].class_ids, [1, 0])
    assert len(dataset.samples[1]) == 0  # no label file: no objects


def test_yolo_by_its_file_and_in_the_order_of_a_model(tmp_path: Path) -> None:
    (write_yolo(tmp_path, YAML, LABELS) / "data.yaml").rename(tmp_path / "pets.yaml")
    dataset = load_dataset(tmp_path / "pets.yaml", "val", ["dog", "cow", "cat"])
    assert dataset.root == tmp_path
    np.testing.assert_array_equal(dataset.samples[0].class_ids, [0, 2])


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        ("images/val", "."),
        ("[images/val]", "nowhere"),
        ("../images/val", "."),
        ("val.txt", "."),
        ("[val.txt, images/val/b.png.txt]", "."),
    ],
)
def test_yolo_places(tmp_path: Path, entry: str, path: str) -> None:
    write_yolo(
        tmp_path / "set", YAML.replace("val: images/val", f"val: {entry}").replace("path: .", f"path: {path}"), LABELS
    )
    (tmp_path / "set" / "val.txt").write_text(
        "./images/val/a.png\nimages/val/b.png\n" if "[" not in entry else "images/val/a.png\n"
    )
    (tmp_path / "set" / "images" / "val" / "b.png.txt").write_text("b.png\n")
    dataset = load_dataset(tmp_path / "set", "val")
    assert [sample.image_path.name for sample in dataset.samples] == ["a.png", "b.png"] and dataset.num_boxes == 2


def test_yolo_labels_beside_the_images(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "a.txt").write_text(LABELS["a"])
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\nval: photos\n")
    assert load_dataset(tmp_path, "val").num_boxes == 2


def test_yolo_without_pyyaml_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependencyError, match="pyyaml") as caught:
        load_dataset(write_yolo(tmp_path, YAML, LABELS), "val")
    assert caught.value.extra in ("bench", "train") and "pip install" in caught.value.fix


LABEL_A = "labels/val/a.txt"


@pytest.mark.parametrize(
    ("label", "expected", "num_boxes"),
    [
        ("0 0.5 0.5 0 0.1", [(LABEL_A, "zero_area_box")], 1),
        ("0 0.5 0.5 0.1 -0.1", [(LABEL_A, "zero_area_box")], 1),
        ("0 0.95 0.5 0.3 0.1", [(LABEL_A, "box_outside_image")], 2),
        ("0 50 30 20 10", [(LABEL_A, "box_outside_image")], 1),  # pixels, where parts of the image are meant
        ("2 0.5 0.5 0.1 0.1", [(LABEL_A, "unknown_category")], 1),
        ("-1 0.5 0.5 0.1 0.1", [(LABEL_A, "unknown_category")], 1),
        ("0.5 0.5 0.5 0.1 0.1", [(LABEL_A, "unknown_category")], 1),
        ("nan 0.5 0.5 0.1 0.1", [(LABEL_A, "unknown_category")], 1),
        ("0 nan 0.5 0.1 0.1", [(LABEL_A, "malformed_annotation")], 1),
        ("0 0.5 0.5 0.1", [(LABEL_A, "malformed_annotation")], 1),
        ("0 0.5 0.5 0.1 0.1 0.9", [(LABEL_A, "malformed_annotation")], 1),
        ("0 0.1 0.1 0.3 0.1 0.2 0.4 0.5", [(LABEL_A, "malformed_annotation")], 1),
        ("cat 0.5 0.5 0.1 0.1", [(LABEL_A, "malformed_annotation")], 1),
        ("0.0 0.5 0.5 0.1 0.1", [], 2),
        ("\n   \n", [], 1),
    ],
)
def test_yolo_defects_are_reported_and_the_rest_is_used(
    tmp_path: Path, label: str, expected: list[tuple[str, str]], num_boxes: int
) -> None:
    # A folder above that is called "images", too, keeps its name.
    dataset = load_dataset(write_yolo(tmp_path / "images", YAML, {"a": f"{label}\n0 0.5 0.5 0.5 0.5\n"}), "val")
    assert kinds(dataset) == expected
    assert (len(dataset), dataset.num_boxes) == (2, num_boxes)


def test_yolo_files_that_are_wrong(tmp_path: Path) -> None:
    write_yolo(tmp_path, YAML + "tarin: images\n", {"a": LABELS["a"]}, images=("a", "b", "c"))
    (tmp_path / "images" / "val" / "b.png").write_bytes(b"no image")
    (tmp_path / "labels" / "val" / "c.txt").write_bytes(b"\xff\xfe\x00binary")
    dataset = load_dataset(tmp_path, "val")
    assert kinds(dataset) == [
        ("data.yaml", "unknown_key"),
        ("images/val/b.png", "undecodable_image"),
        ("labels/val/c.txt", "malformed_annotation"),
    ]
    assert len(dataset) == 1


def test_yolo_list_that_names_images_twice_or_wrongly(tmp_path: Path) -> None:
    write_yolo(tmp_path, YAML.replace("images/val", "val.txt"), LABELS)
    (tmp_path / "val.txt").write_text("images/val/a.png\nimages/val/a.png\nimages/val/absent.png\n")
    dataset = load_dataset(tmp_path, "val")
    assert kinds(dataset) == [("images/val/a.png", "duplicate_image"), ("images/val/absent.png", "missing_image")]
    assert len(dataset) == 1


def test_yolo_without_any_label_file_is_a_problem(tmp_path: Path) -> None:
    assert kinds(load_dataset(write_yolo(tmp_path, YAML, {}), "val")) == [(LABEL_A, "missing_annotation")]


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("names: [cat\nval: x", "expected YAML"),
        ("- a\n- b\n", "got a list"),
        ("val: images/val\n", "names: expected a list"),
        ("names: []\nval: images/val\n", "names: expected a list"),
        ("names: {0: cat, 2: dog}\nval: images/val\n", "names: expected a list"),
        ("names: {a: cat}\nval: images/val\n", "names: expected a list"),
        ("names: [cat, dog]\nnc: 3\nval: images/val\n", "nc: expected 2"),
        ("names: [cat]\nval: images/nowhere\n", "images/nowhere"),
        ("names: [cat]\ntrain: images/val\n", "split 'val': expected one of train"),
    ],
)
def test_a_yaml_file_that_cannot_be_used(tmp_path: Path, yaml: str, expected: str) -> None:
    with pytest.raises(DatasetError, match=expected) as caught:
        load_dataset(write_yolo(tmp_path, yaml, LABELS), "val")
    assert "\n" not in str(caught.value)


# All layouts


@pytest.mark.parametrize(
    "make",
    [
        lambda root: write_coco(root, coco_document()) and "val",
        lambda root: write_voc(root, SOUND) and "train",
        lambda root: write_yolo(root, YAML, LABELS) and "val",
    ],
    ids=["coco", "voc", "yolo"],
)
def test_errors_of_all_layouts(tmp_path: Path, make: Callable[[Path], str]) -> None:
    split = make(tmp_path)
    with pytest.raises(DatasetError, match=rf"expected one of .*{split}.*, got 'vla'"):
        load_dataset(tmp_path, "vla")
    with pytest.raises(DatasetError, match="others alone"):
        load_dataset(tmp_path, split, ["aeroplane", "bicycle"])
    for image in [*tmp_path.rglob("*.png"), *tmp_path.rglob("*.jpg")]:
        image.unlink()
        image.with_suffix(".moved").write_bytes(b"")
    with pytest.raises(DatasetError, match="images that can be used"):
        load_dataset(tmp_path, split)
    assert len(load_dataset(tmp_path, split, allow_empty=True)) == 0


def test_a_folder_of_no_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    for directory, got in ((tmp_path, "none of these"), (tmp_path / "absent", "no such folder")):
        with pytest.raises(DatasetError, match=got) as caught:
            load_dataset(directory, "val")
        for layout in ("instances_<split>2017.json", "ImageSets/Main/<split>.txt", "data.yaml"):
            assert layout in str(caught.value)


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    write_voc(tmp_path / "voc", SOUND)
    (tmp_path / "voc" / "ImageSets" / "Main" / "train.txt").write_text(f"one\n{name}\n")
    assert [kind for _, kind in kinds(load_dataset(tmp_path / "voc", "train"))] == ["missing_image"]
    write_yolo(tmp_path / "yolo", YAML.replace("images/val", "val.txt"), LABELS)
    (tmp_path / "yolo" / "val.txt").write_text(f"images/val/a.png\n{name}.png\n")
    assert [kind for _, kind in kinds(load_dataset(tmp_path / "yolo", "val"))] == ["missing_image"]
    with pytest.raises(DatasetError, match="no such folder"):
        load_dataset(tmp_path / name, "val")


# Real data


@pytest.mark.parametrize(
    ("split", "num_images", "num_boxes", "zero_area_in"),
    [
        ("train", 205, 2804, ["Annotations/BloodImage_00343.xml"]),
        ("val", 87, 1137, ["Annotations/BloodImage_00338.xml"]),
        ("test", 72, 945, []),
    ],
)
def test_bccd(shared_dir: Path, split: str, num_images: int, num_boxes: int, zero_area_in: list[str]) -> None:
    dataset = load_dataset(shared_dir / "data" / "bccd", split)
    assert dataset.class_names == ("Platelets", "RBC", "WBC")
    assert (len(dataset), dataset.num_boxes) == (num_images, num_boxes)
    assert kinds(dataset) == [(file, "zero_area_box") for file in zero_area_in]


@pytest.mark.parametrize(("split", "num_boxes", "num_crowds"), [("train", 739, 8), ("val", 815, 11)])
def test_coco_tiny(shared_dir: Path, split: str, num_boxes: int, num_crowds: int) -> None:
    dataset = load_dataset(shared_dir / "data" / "coco-tiny", split)
    assert (len(dataset), dataset.num_boxes, len(dataset.class_names)) == (80, num_boxes, 80)
    assert sum(int(sample.is_crowd.sum()) for sample in dataset.samples) == num_crowds
    assert dataset.class_names[:2] == ("person", "bicycle") and dataset.category_ids[-1] == 90
    assert dataset.problems == ()
