"""What can be wrong with a data set, said of the file it is wrong in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from boxwright.core.errors import InputError

ProblemKind = Literal[
    "missing_image",
    "undecodable_image",
    "duplicate_image",
    "size_mismatch",
    "missing_annotation",
    "malformed_annotation",
    "unknown_image",
    "unknown_category",
    "zero_area_box",
    "box_outside_image",
    "unknown_key",
]

# Each kind in words, for a summary line.
DESCRIPTIONS: dict[ProblemKind, str] = {
    "missing_image": "images that are listed but not there",
    "undecodable_image": "images that do not decode",
    "duplicate_image": "images that are there twice",
    "size_mismatch": "images of another size than their annotation says",
    "missing_annotation": "images without their annotation file",
    "malformed_annotation": "annotations that cannot be read",
    "unknown_image": "annotations of images that are not listed",
    "unknown_category": "boxes of a class that is not known",
    "zero_area_box": "boxes without area",
    "box_outside_image": "boxes that reach out of their image",
    "unknown_key": "settings that are not known",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        file: where it is mended, relative to the data set's folder if it lies there.
        kind: one of `DESCRIPTIONS`.
        detail: what was found, and what became of it.
    """

    file: str
    kind: ProblemKind
    detail: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(ProblemKind):
            expected = "one of " + ", ".join(get_args(ProblemKind))
            raise InputError("Problem.kind", expected=expected, got=repr(self.kind), fix="correct it")
