"""Heads of other people's detectors, one file each; the file name is what `--head` takes.

A file has `EXPECTS`, a line on its outputs, and `read(foreign) -> Reading`, which recognises them and says how they
become raw heads. That is written once, in the few operations of `operations.py`, and carried out twice: on the graph,
to adopt it, and in numpy on what the original gives, to compare the two.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Protocol, cast

from boxwright.core.errors import ModelFileError, UnsupportedError
from boxwright.export.foreign import ForeignFile
from boxwright.export.heads.operations import Reading

_SHARED = frozenset({"operations"})


class Head(Protocol):
    """What a file `export/heads/<name>.py` defines."""

    EXPECTS: str

    def read(self, foreign: ForeignFile) -> Reading:
        """How the outputs of this file become raw heads, and these become detections.

        Raises:
            ModelFileError: where the outputs are not those of the head, or the classes not as many as the labels.
        """


def head_names() -> tuple[str, ...]:
    """The names of all heads, sorted."""
    return tuple(sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name not in _SHARED))


def find_head(name: str) -> Head:
    """The head of that name.

    Raises:
        UnsupportedError: where there is none.
    """
    if name not in head_names():
        raise UnsupportedError(
            "--head", expected="one of " + ", ".join(head_names()), got=repr(name), fix="pass one of these"
        )
    return cast("Head", importlib.import_module(f"{__name__}.{name}"))


def read_head(name: str, foreign: ForeignFile) -> Reading:
    """How the outputs of a file become raw heads and detections, by the head of that name.

    Raises:
        UnsupportedError: where there is no such head.
        ModelFileError: where the outputs are not those of the head; it names the heads that they fit.
    """
    head = find_head(name)
    try:
        return head.read(foreign)
    except ModelFileError as error:
        fitting = [other for other in head_names() if other != name and _fits(other, foreign)]
        if not fitting:
            raise
        found = ", ".join(f"{output} {array.shape}" for output, array in foreign.outputs.items())
        raise ModelFileError(
            str(foreign.path),
            expected=f"outputs of the head {name}: {head.EXPECTS}",
            got=found,
            fix="pass --head " + " or ".join(fitting) + ", which they fit",
        ) from error


def _fits(name: str, foreign: ForeignFile) -> bool:
    try:
        find_head(name).read(foreign)
    except ModelFileError:
        return False
    return True
