"""The COCO layout: one JSON file of annotations a split, and a folder of images."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from boxwright.core.errors import DatasetError
from boxwright.data.annotations import ClassIndex, ProblemLog, SampleBuilder, known_size_hw, read_text
from boxwright.data.dataset import Dataset

LAYOUT = "coco"
LOOKED_FOR = "annotations/instances_<split>2017.json or annotations/instances_<split>.json"
_PREFIX = "instances_"
_YEAR = "2017"


def recognises(root: Path) -> bool:
    """Whether the folder has this layout."""
    return bool(list_splits(root))


def list_splits(root: Path) -> tuple[str, ...]:
    """The splits that have an annotation file."""
    stems = (path.stem.removeprefix(_PREFIX) for path in (root / "annotations").glob(f"{_PREFIX}*.json"))
    return tuple(sorted({stem.removesuffix(_YEAR) for stem in stems}))


def read(root: Path, split: str, class_names: Sequence[str] | None = None) -> Dataset:
    """Read a split that `list_splits` names.

    Args:
        root: the data set's folder.
        split: its name.
        class_names: the order of the classes; the categories in the order of their ids where None.

    Returns:
        The split; crowd annotations are kept and marked.

    Raises:
        DatasetError: where the annotation file is no COCO file, or no class is known.
    """
    annotation_file = _annotation_file(root, split)
    document = _load(annotation_file)
    log = ProblemLog(root)
    classes, category_ids, class_of_category = _read_categories(
        document["categories"], class_names, annotation_file, log
    )
    images = _read_images(document["images"], root, _image_folder(root, annotation_file, split), annotation_file, log)
    rows_of_image = _group_by_image(document["annotations"], document["images"], annotation_file, log)
    samples = []
    for image_key, builder in images.items():
        for row in rows_of_image[image_key]:
            _add_row(row, builder, class_of_category)
        samples.append(builder.build())
    return Dataset(
        name=root.name,
        root=root,
        split=split,
        layout=LAYOUT,
        class_names=classes,
        category_ids=category_ids,
        samples=tuple(samples),
        problems=log.problems,
    )


def _annotation_file(root: Path, split: str) -> Path:
    with_year = root / "annotations" / f"{_PREFIX}{split}{_YEAR}.json"
    return with_year if os.path.isfile(with_year) else root / "annotations" / f"{_PREFIX}{split}.json"


def _image_folder(root: Path, annotation_file: Path, split: str) -> Path:
    """The folder named as the annotation file is, or as the split is, beside `annotations` or below `images`."""
    for name in (annotation_file.stem.removeprefix(_PREFIX), split, f"{split}{_YEAR}"):
        for folder in (root / name, root / "images" / name):
            if os.path.isdir(folder):
                return folder
    return root / annotation_file.stem.removeprefix(_PREFIX)


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        document: Any = json.loads(read_text(path, "a COCO annotation file"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(
            str(path), expected="a COCO annotation file in JSON", got=str(error), fix="mend it"
        ) from error
    lists: dict[str, list[Any]] = document if isinstance(document, dict) else {}
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(lists.get(key), list)]
    if missing:
        raise DatasetError(
            str(path),
            expected="an object with the lists images, annotations and categories",
            got="one without " + ", ".join(missing),
            fix="give a COCO file of boxes ('instances')",
        )
    return lists


def _read_categories(
    rows: Sequence[Any], class_names: Sequence[str] | None, file: Path, log: ProblemLog
) -> tuple[tuple[str, ...], tuple[int, ...], dict[object, int | None]]:
    """Class names, the category id of each, and the class of each category id (None: of no class wanted)."""
    name_of_id: dict[int, str] = {}
    for row in rows:
        category_id, name = (row.get("id"), row.get("name")) if isinstance(row, Mapping) else (None, None)
        if not _is_integer(category_id) or not isinstance(name, str) or category_id in name_of_id:
            log.add(file, "malformed_annotation", f"category {row!r} has no name or no id of its own; left out")
        else:
            name_of_id[category_id] = name
    found = dict(sorted(name_of_id.items()))
    classes = ClassIndex(tuple(found.values()), class_names, str(file))
    if class_names is None:  # each category is a class, also where two bear one name
        return classes.names, tuple(found), {category_id: index for index, category_id in enumerate(found)}
    class_of_category: dict[object, int | None] = {category_id: classes[name] for category_id, name in found.items()}
    id_of_class = {index: category_id for category_id, index in reversed(list(class_of_category.items()))}
    unused_id = max(found) + 1  # a class that the file does not know gets an id that it does not use
    category_ids = tuple(id_of_class.get(index, unused_id + index) for index in range(len(classes.names)))
    return classes.names, category_ids, class_of_category  # type: ignore[return-value]


def _read_images(
    rows: Sequence[Any], root: Path, folder: Path, annotation_file: Path, log: ProblemLog
) -> dict[object, SampleBuilder]:
    """A builder for each image that is there, by the id that annotations use."""
    keeps_ids = all(isinstance(row, Mapping) and _is_integer(row.get("id")) for row in rows)
    builders: dict[object, SampleBuilder] = {}
    seen_ids: set[object] = set()
    seen_names: set[str] = set()
    for position, row in enumerate(rows, start=1):
        key, file_name = (row.get("id"), row.get("file_name")) if isinstance(row, Mapping) else (None, None)
        if not isinstance(key, (int, str)) or not isinstance(file_name, str) or not file_name:
            log.add(annotation_file, "malformed_annotation", f"image {row!r} has no id or file_name; left out")
            continue
        if key in seen_ids or file_name in seen_names:
            log.add(folder / file_name, "duplicate_image", f"listed again as id {key}; this entry is left out")
            continue
        seen_ids.add(key)
        seen_names.add(file_name)
        path = next((path for path in (folder / file_name, root / file_name) if os.path.isfile(path)), None)
        if path is None:
            log.add(folder / file_name, "missing_image", "no such file; the image and its boxes are left out")
            continue
        size_hw = known_size_hw(path, row.get("height"), row.get("width"), log)
        if size_hw is not None:
            image_id = key if keeps_ids and isinstance(key, int) else position
            builders[key] = SampleBuilder(path, image_id, size_hw, path, log)
    return builders


def _group_by_image(
    rows: Sequence[Any], image_rows: Sequence[Any], file: Path, log: ProblemLog
) -> defaultdict[object, list[Mapping[str, Any]]]:
    known = {row["id"] for row in image_rows if isinstance(row, Mapping) and isinstance(row.get("id"), (int, str))}
    groups: defaultdict[object, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if not isinstance(row, Mapping):
            log.add(file, "malformed_annotation", f"annotation {row!r} is no object; left out")
            continue
        key = row.get("image_id")
        if isinstance(key, (int, str)) and key in known:
            groups[key].append(row)
        else:
            log.add(
                file, "unknown_image", f"annotation {row.get('id')} is of image {key!r}, which is not listed; left out"
            )
    return groups


def _add_row(row: Mapping[str, Any], builder: SampleBuilder, class_of_category: Mapping[object, int | None]) -> None:
    where = f"annotation {row.get('id')}"
    category_id, box_xywh = row.get("category_id"), row.get("bbox")
    class_id = class_of_category.get(category_id) if _is_integer(category_id) else None
    if class_id is None:
        builder.report("unknown_category", f"{where}: category {category_id!r}; left out")
    elif not isinstance(box_xywh, list) or len(box_xywh) != 4 or not all(_is_number(number) for number in box_xywh):
        builder.report("malformed_annotation", f"{where}: bbox {box_xywh!r} is not four numbers; left out")
    else:
        left, top, width, height = box_xywh
        builder.add_box(
            (left, top, left + width, top + height),
            class_id,
            where=where,
            is_crowd=bool(row.get("iscrowd", 0)),
            area=area if _is_number(area := row.get("area")) else None,
        )


def _is_integer(value: object) -> TypeGuard[int]:
    """Whether this is an integer, and of 64 bits: JSON knows larger ones."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, float) or _is_integer(value)
