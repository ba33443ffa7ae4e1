"""Finding everything that is wrong with a data set before hours are spent on it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from boxwright.core.errors import ImageError
from boxwright.core.images import decode_image, read_image_bytes
from boxwright.data.annotations import ProblemLog, relative_name
from boxwright.data.dataset import Dataset, Sample
from boxwright.data.problems import DESCRIPTIONS, Problem, ProblemKind


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a data set has, and what is wrong with it.

    Attributes:
        name: of the data set.
        layout: "coco", "voc" or "yolo".
        split: of the data set.
        num_images: that can be used.
        num_boxes: that can be used, of these images.
        num_images_without_boxes: among them.
        boxes_per_class: how many each class has, by its name.
        problems: all that were found, in the order of the annotations, then of the images.
        unusable_images: the samples whose image does not decode; `Dataset.without_images` takes them.
    """

    name: str
    layout: str
    split: str
    num_images: int
    num_boxes: int
    num_images_without_boxes: int
    boxes_per_class: dict[str, int]
    problems: tuple[Problem, ...]
    unusable_images: tuple[Path, ...] = ()

    @property
    def is_clean(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def counts(self) -> dict[ProblemKind, int]:
        """How many problems there are of each kind that occurs."""
        counter = Counter(problem.kind for problem in self.problems)
        return {kind: counter[kind] for kind in DESCRIPTIONS if counter[kind]}

    def by_file(self) -> dict[str, list[Problem]]:
        """The problems of each file, by its name, sorted."""
        files: dict[str, list[Problem]] = {}
        for problem in sorted(self.problems, key=lambda problem: problem.file):
            files.setdefault(problem.file, []).append(problem)
        return files

    def to_jsonable(self) -> dict[str, Any]:
        """One JSON object."""
        return {
            "name": self.name,
            "layout": self.layout,
            "split": self.split,
            "num_images": self.num_images,
            "num_boxes": self.num_boxes,
            "num_images_without_boxes": self.num_images_without_boxes,
            "boxes_per_class": self.boxes_per_class,
            "num_problems": len(self.problems),
            "problem_counts": dict(self.counts()),
            "problems": [
                {"file": problem.file, "kind": problem.kind, "detail": problem.detail} for problem in self.problems
            ],
        }

    def to_lines(self, max_problems: int | None = None) -> list[str]:
        """The report as text.

        Args:
            max_problems: how many to spell out at most; all where None. The counts are always of all.
        """
        per_class = ", ".join(f"{name} {count}" for name, count in self.boxes_per_class.items())
        lines = [
            f"{self.name} ({self.layout}), {self.split}: {self.num_images} images, {self.num_boxes} boxes, "
            f"{self.num_images_without_boxes} images without boxes",
            f"boxes per class: {per_class}",
            f"problems: {len(self.problems)}",
        ]
        lines += [f"  {count} {DESCRIPTIONS[kind]} ({kind})" for kind, count in self.counts().items()]
        details = [
            f"  {file}: {problem.kind}: {problem.detail}"
            for file, problems in self.by_file().items()
            for problem in problems
        ]
        shown = details if max_problems is None else details[:max_problems]
        hidden = len(details) - len(shown)
        return lines + shown + ([f"  ... and {hidden} more"] if hidden else [])


class _Facts(NamedTuple):
    """Of an image that decodes."""

    size_hw: tuple[int, int]
    digest: str


def check_dataset(
    dataset: Dataset,
    *,
    decode_images: bool = True,
    num_workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Find everything that is wrong with a data set.

    Args:
        dataset: as `load_dataset` read it; the problems that it met are part of the report.
        decode_images: read every image, to find those that do not decode, have another size than their annotation
            says, or are copies of one another.
        num_workers: threads that decode.
        on_progress: called with the number of images done and of all.
    """
    log = ProblemLog(dataset.root)
    unusable: list[Path] = []
    if decode_images:
        first_of_digest: dict[str, Path] = {}
        for done, (sample, facts) in enumerate(_examine_all(dataset.samples, num_workers), start=1):
            if isinstance(facts, ImageError):
                log.add(sample.image_path, "undecodable_image", facts.got)
                unusable.append(sample.image_path)
            else:
                _compare(sample, *facts, first_of_digest, log, dataset.root)
            if on_progress is not None:
                on_progress(done, len(dataset))
    usable = dataset.without_images(unusable)
    return Report(
        name=dataset.name,
        layout=dataset.layout,
        split=dataset.split,
        num_images=len(usable),
        num_boxes=usable.num_boxes,
        num_images_without_boxes=sum(len(sample) == 0 for sample in usable.samples),
        boxes_per_class=usable.boxes_per_class(),
        problems=dataset.problems + log.problems,
        unusable_images=tuple(unusable),
    )


def _examine_all(samples: Sequence[Sample], num_workers: int) -> Iterator[tuple[Sample, _Facts | ImageError]]:
    if num_workers <= 1:
        yield from ((sample, _examine(sample)) for sample in samples)
        return
    pool = ThreadPoolExecutor(max_workers=num_workers)
    try:
        yield from zip(samples, pool.map(_examine, samples), strict=True)
    finally:  # an interrupt does not wait for the images that are left
        pool.shutdown(wait=False, cancel_futures=True)


def _examine(sample: Sample) -> _Facts | ImageError:
    """Size and digest of an image, or why it does not decode."""
    try:
        data = read_image_bytes(sample.image_path)
        image = decode_image(data, str(sample.image_path))
    except ImageError as error:
        return error
    return _Facts((image.shape[0], image.shape[1]), hashlib.sha256(data).hexdigest())


def _compare(
    sample: Sample,
    size_hw: tuple[int, int],
    digest: str,
    first_of_digest: dict[str, Path],
    log: ProblemLog,
    root: Path,
) -> None:
    if size_hw != sample.size_hw:
        hint = " (turned by its EXIF orientation?)" if size_hw == sample.size_hw[::-1] else ""
        log.add(
            sample.image_path,
            "size_mismatch",
            f"{size_hw[1]}x{size_hw[0]}, but {sample.size_hw[1]}x{sample.size_hw[0]} in the annotation{hint}; "
            "its boxes may not fit",
        )
    first = first_of_digest.setdefault(digest, sample.image_path)
    if first != sample.image_path:
        log.add(sample.image_path, "duplicate_image", f"the same bytes as {relative_name(first, root)}; both are kept")
