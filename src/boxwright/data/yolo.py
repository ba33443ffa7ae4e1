"""The YOLO layout: a `data.yaml` with class names and folders, and a text file of boxes beside each image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from boxwright.core.errors import DatasetError, MissingDependencyError
from boxwright.core.images import IMAGE_SUFFIXES
from boxwright.data.annotations import ClassIndex, ProblemLog, SampleBuilder, known_size_hw, read_text
from boxwright.data.dataset import Dataset, Sample

LAYOUT = "yolo"
LOOKED_FOR = "data.yaml"
_SPLIT_KEYS = ("train", "val", "test", "minival")
# Keys that such files carry and that say nothing about boxes: where the set came from, and settings of other tasks.
_OTHER_KEYS = (
    "path names nc download roboflow author citation date description license links stride task url version".split()
    + "augment batch channels flip_idx imgsz kpt_names kpt_shape skeleton".split()
)


def recognises(root: Path) -> bool:
    """Whether this is a folder with a `data.yaml`, or such a file itself (of any name)."""
    return root.suffix.lower() in (".yaml", ".yml") if os.path.isfile(root) else os.path.isfile(root / LOOKED_FOR)


def list_splits(root: Path) -> tuple[str, ...]:
    """The splits that the file names."""
    settings = _load(_settings_file(root))
    return tuple(key for key in _SPLIT_KEYS if settings.get(key))


def read(root: Path, split: str, class_names: Sequence[str] | None = None) -> Dataset:
    """Read a split that `list_splits` names.

    A label file holds a line a box: class index, then centre, width and height as parts of the image's; or class
    index, then the corners of a polygon, which becomes its bounding box. An image without a label file has no objects;
    that none has one is a problem.

    Args:
        root: the data set's folder, or its YAML file.
        split: its name.
        class_names: the order of the classes; that of the YAML file where None.

    Returns:
        The split.

    Raises:
        DatasetError: where the YAML file or an image list cannot be read, or a folder that it names is not there.
        MissingDependencyError: without PyYAML.
    """
    file = _settings_file(root)
    settings = _load(file)
    log = ProblemLog(file.parent)
    for key in settings:
        if key not in (*_SPLIT_KEYS, *_OTHER_KEYS):
            log.add(file, "unknown_key", f"{key!r}; not used")
    found = _class_names(settings, file)
    classes = ClassIndex(found, class_names, str(file))
    paths = _unique(_image_paths(settings, split, file), log)
    if paths and not any(os.path.isfile(_label_file(path)) for path in paths):
        log.add(_label_file(paths[0]), "missing_annotation", f"no such file, nor one of any other image of {split}")
    samples = (_read_sample(path, position, found, classes, log) for position, path in enumerate(paths, start=1))
    return Dataset(
        name=file.parent.name,
        root=file.parent,
        split=split,
        layout=LAYOUT,
        class_names=classes.names,
        category_ids=tuple(range(1, len(classes.names) + 1)),
        samples=tuple(sample for sample in samples if sample is not None),
        problems=log.problems,
    )


def _settings_file(root: Path) -> Path:
    return root if os.path.isfile(root) else root / LOOKED_FOR


def _load(file: Path) -> dict[Any, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingDependencyError("pyyaml", extra="bench", needed_for=f"reading {file}") from error
    try:
        settings = yaml.safe_load(read_text(file, "a YAML file"))
    except yaml.YAMLError as error:
        raise DatasetError(str(file), expected="YAML", got=str(error), fix="mend the file") from error
    if not isinstance(settings, dict):
        raise DatasetError(
            str(file),
            expected="the keys names, train and val",
            got=f"a {type(settings).__name__}",
            fix="write them as 'key: value'",
        )
    return settings


def _class_names(settings: dict[Any, Any], file: Path) -> tuple[str, ...]:
    """The class names, given as a list or as a mapping from index to name."""
    names = settings.get("names")
    if isinstance(names, dict):
        by_index = {int(str(key)) if str(key).isdecimal() else -1: name for key, name in names.items()}
        names = [by_index[index] for index in range(len(names))] if set(by_index) == set(range(len(names))) else None
    if not isinstance(names, list) or not names:
        raise DatasetError(
            f"{file}: names",
            expected="a list of class names, or a mapping from 0, 1, ... to them",
            got=repr(settings.get("names")),
            fix="write one name a class",
        )
    count = settings.get("nc", len(names))
    if count != len(names):
        raise DatasetError(
            f"{file}: nc", expected=f"{len(names)}, as many as names", got=repr(count), fix="correct nc or names"
        )
    return tuple(str(name) for name in names)


def _image_paths(settings: dict[Any, Any], split: str, file: Path) -> Iterator[Path]:
    """The images of a split, given as a folder (searched with its subfolders), a list of paths, or several of these."""
    entry = settings[split]
    for part in entry if isinstance(entry, list) else [entry]:
        place = _locate(str(part), settings.get("path"), file)
        if os.path.isdir(place):
            yield from sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        else:
            yield from _listed_images(place)


def _locate(part: str, base: object, file: Path) -> Path:
    folders = [file.parent / str(base), file.parent] if base else [file.parent]
    # Roboflow writes "../train/images" where the folder lies beside the file.
    places = [folder / name for folder in folders for name in dict.fromkeys((part, part.removeprefix("../")))]
    for place in places:
        if os.path.exists(place):
            return place
    raise DatasetError(
        str(file),
        expected="the images' folder or list at " + " or ".join(str(place) for place in places),
        got="none",
        fix="correct 'path' and the split's entry",
    )


def _listed_images(file: Path) -> Iterator[Path]:
    """The paths in a text file; a relative one starts at the file's folder."""
    for line in read_text(file, "a list of images").splitlines():
        if line.strip():
            yield file.parent / line.strip()


def _unique(paths: Iterator[Path], log: ProblemLog) -> list[Path]:
    unique: dict[Path, None] = {}
    for path in paths:
        if path in unique:
            log.add(path, "duplicate_image", "listed again; this entry is left out")
        unique[path] = None
    return list(unique)


def _label_file(image_path: Path) -> Path:
    """The label file: in the folder `labels` that stands for the last `images` in the path, else beside the image."""
    parts = list(image_path.parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_sample(
    image_path: Path, position: int, found: Sequence[str], classes: ClassIndex, log: ProblemLog
) -> Sample | None:
    if not os.path.isfile(image_path):
        log.add(image_path, "missing_image", "no such file; the image and its boxes are left out")
        return None
    size_hw = known_size_hw(image_path, None, None, log)
    if size_hw is None:
        return None
    file = _label_file(image_path)
    builder = SampleBuilder(image_path, position, size_hw, file, log)
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return builder.build()
    except (OSError, UnicodeDecodeError) as error:
        builder.report("malformed_annotation", f"{error}; its image is left out")
        return None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            _add_line(line, f"line {number}", size_hw, builder, found, classes)
    return builder.build()


def _add_line(
    line: str,
    where: str,
    size_hw: tuple[int, int],
    builder: SampleBuilder,
    found: Sequence[str],
    classes: ClassIndex,
) -> None:
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        numbers = []
    is_box, is_polygon = len(numbers) == 5, len(numbers) >= 7 and len(numbers) % 2 == 1
    if not is_box and not is_polygon:
        expected = "a class and four numbers or a polygon"
        builder.report("malformed_annotation", f"{where}: {line.strip()[:80]!r} is not {expected}; left out")
        return
    index = int(numbers[0]) if numbers[0].is_integer() else -1
    class_id = classes[found[index]] if 0 <= index < len(found) else None
    if class_id is None:
        builder.report("unknown_category", f"{where}: class {line.split()[0]}; left out")
        return
    height, width = size_hw
    if is_box:
        centre_x, centre_y, box_width, box_height = numbers[1:]
        left, right = centre_x - box_width / 2, centre_x + box_width / 2
        top, bottom = centre_y - box_height / 2, centre_y + box_height / 2
    else:
        left, right = min(numbers[1::2]), max(numbers[1::2])
        top, bottom = min(numbers[2::2]), max(numbers[2::2])
    builder.add_box((left * width, top * height, right * width, bottom * height), class_id, where=where)
