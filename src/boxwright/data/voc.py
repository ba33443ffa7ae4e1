"""The PASCAL VOC layout: an XML file an image, and lists of images a split."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from boxwright.core.images import IMAGE_SUFFIXES
from boxwright.data.annotations import ClassIndex, ProblemLog, SampleBuilder, known_size_hw, read_text
from boxwright.data.dataset import Dataset, Sample

LAYOUT = "voc"
LOOKED_FOR = "Annotations/, JPEGImages/ and ImageSets/Main/<split>.txt"
_LISTS = Path("ImageSets") / "Main"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def recognises(root: Path) -> bool:
    """Whether the folder has this layout."""
    return (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir() and bool(list_splits(root))


def list_splits(root: Path) -> tuple[str, ...]:
    """The splits that have a list."""
    return tuple(sorted(path.stem for path in (root / _LISTS).glob("*.txt")))


def read(root: Path, split: str, class_names: Sequence[str] | None = None) -> Dataset:
    """Read a split that `list_splits` names.

    Coordinates are taken as they stand: the tools that write this layout today count pixels from 0, whereas VOC's own
    files count from 1, which shifts their boxes by one pixel.

    Args:
        root: the data set's folder.
        split: its name.
        class_names: the order of the classes; the names in all files of `Annotations`, sorted, where None,
            so that every split gets the same.

    Returns:
        The split; objects marked `difficult` are kept as crowds, which VOC's evaluation leaves out as well.

    Raises:
        DatasetError: where the list cannot be read, or no class is known.
    """
    log = ProblemLog(root)
    stems = _read_list(root / _LISTS / f"{split}.txt", log)
    files = _all_annotation_files(root) if class_names is None else [_annotation_file(root, stem) for stem in stems]
    classes = ClassIndex(_names_in(files), class_names, str(root))
    samples = (_read_sample(root, stem, position, classes, log) for position, stem in enumerate(stems, start=1))
    return Dataset(
        name=root.name,
        root=root,
        split=split,
        layout=LAYOUT,
        class_names=classes.names,
        category_ids=tuple(range(1, len(classes.names) + 1)),
        samples=tuple(sample for sample in samples if sample is not None),
        problems=log.problems,
    )


def _annotation_file(root: Path, stem: str) -> Path:
    return root / "Annotations" / f"{stem}.xml"


def _all_annotation_files(root: Path) -> list[Path]:
    return sorted((root / "Annotations").glob("*.xml"))


def _names_in(files: Sequence[Path]) -> list[str]:
    """The class names that these files use, sorted; those that cannot be read are reported where they are needed."""
    names: set[str] = set()
    for file in files:
        try:
            objects = _parse(file).findall("object")
        except (OSError, ET.ParseError):
            continue
        names.update(_text_of(item, "name") for item in objects)
    return sorted(names - {""})


def _parse(file: Path) -> ET.Element:
    return ET.parse(file).getroot()


def _read_list(file: Path, log: ProblemLog) -> list[str]:
    """The image names of a list, each once. A second column, as in VOC's lists of one class, is not read."""
    stems: dict[str, None] = {}
    for number, line in enumerate(read_text(file, "a list of images").splitlines(), start=1):
        words = line.split()
        if words and words[0] in stems:
            log.add(file, "duplicate_image", f"line {number}: {words[0]} is listed again; this entry is left out")
        elif words:
            stems[words[0]] = None
    return list(stems)


def _image_path(root: Path, stem: str) -> Path | None:
    for suffix in IMAGE_SUFFIXES:
        for spelling in (suffix, suffix.upper()):
            path = root / "JPEGImages" / f"{stem}{spelling}"
            if os.path.isfile(path):
                return path
    return None


def _read_sample(root: Path, stem: str, position: int, classes: ClassIndex, log: ProblemLog) -> Sample | None:
    file, image_path = _annotation_file(root, stem), _image_path(root, stem)
    if image_path is None:
        log.add(
            root / "JPEGImages" / f"{stem}.jpg", "missing_image", "no such file; the image and its boxes are left out"
        )
        return None
    try:
        annotation = _parse(file)
    except FileNotFoundError:
        log.add(file, "missing_annotation", "no such file; its image is left out")
        return None
    except (OSError, ET.ParseError) as error:
        log.add(file, "malformed_annotation", f"{error}; its image is left out")
        return None
    height, width = _integer_of(annotation, "size/height"), _integer_of(annotation, "size/width")
    size_hw = known_size_hw(image_path, height, width, log)
    if size_hw is None:
        return None
    builder = SampleBuilder(image_path, position, size_hw, file, log)
    for number, item in enumerate(annotation.findall("object"), start=1):
        _add_object(item, f"object {number}", builder, classes)
    return builder.build()


def _add_object(item: ET.Element, where: str, builder: SampleBuilder, classes: ClassIndex) -> None:
    name = _text_of(item, "name")
    class_id = classes[name]
    corners = [_text_of(item, f"bndbox/{corner}") for corner in _CORNERS]
    try:
        box_xyxy = [float(corner) for corner in corners]
    except ValueError:
        builder.report("malformed_annotation", f"{where}: bndbox {corners} is not four numbers; left out")
        return
    if class_id is None:
        builder.report("unknown_category", f"{where}: class {name!r}; left out")
        return
    builder.add_box(box_xyxy, class_id, where=where, is_crowd=_integer_of(item, "difficult") == 1)


def _text_of(element: ET.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _integer_of(element: ET.Element, path: str) -> int | None:
    try:
        return int(float(_text_of(element, path)))
    except (ValueError, OverflowError):
        return None
