"""Darknet's two files: the network description (.cfg) and the numbers (.weights).

Source: the files of the YOLO v2 to v4 releases. A .cfg is a list of `[section]`s with `key=value` lines; a .weights
file is a header (three int32 of version, then the number of images seen) and float32 numbers without names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import CheckpointError

_VERSION_WITH_WIDE_COUNTER = 2
_LARGEST_INTEGER = 2**31 - 1  # Darknet's int


@dataclass(frozen=True, kw_only=True)
class Section:
    """One `[section]` of a .cfg.

    Attributes:
        name: between the brackets.
        options: as written, without blanks.
        line: of its header, for messages.
        source: file name, for messages.
    """

    name: str
    options: dict[str, str]
    line: int
    source: str

    def integer(self, key: str, default: int | None = None) -> int:
        """An option as a whole number; an error where it is none, or missing without a default."""
        return int(self._parse(key, None if default is None else str(default), _whole, "a whole number"))

    def number(self, key: str, default: float) -> float:
        """An option as a finite number."""
        return float(self._parse(key, str(default), _finite, "a number"))

    def text(self, key: str, default: str) -> str:
        """An option as it stands."""
        return self.options.get(key, default)

    def integers(self, key: str) -> tuple[int, ...]:
        """An option as whole numbers separated by commas; none where it is missing."""
        return tuple(int(value) for value in self._list(key, _whole, "whole numbers"))

    def numbers(self, key: str) -> tuple[float, ...]:
        """An option as finite numbers separated by commas; none where it is missing."""
        return tuple(float(value) for value in self._list(key, _finite, "numbers"))

    def refuse(self, *keys: str) -> None:
        """Raise `CheckpointError` where one of these options is set to anything but 0: each would change the result."""
        for key in keys:
            if self.text(key, "0") not in ("0", "0.0"):
                raise self.error(f"no {key}", f"{key}={self.options[key]}", "use a network without it")

    def error(self, expected: str, got: str, fix: str = "correct the .cfg") -> CheckpointError:
        """An error that names this section."""
        return CheckpointError(f"{self.source}:{self.line} [{self.name}]", expected=expected, got=got, fix=fix)

    def _parse(self, key: str, default: str | None, kind: Callable[[str], float], expected: str) -> float:
        value = self.options.get(key, default)
        if value is None:
            raise self.error(f"the option {key}", "none")
        try:
            return kind(value)
        except ValueError:
            raise self.error(f"{expected} for {key}", repr(value)) from None

    def _list(self, key: str, kind: Callable[[str], float], expected: str) -> list[float]:
        parts = [part for part in self.options.get(key, "").replace(" ", "").split(",") if part]
        try:
            return [kind(part) for part in parts]
        except ValueError:
            raise self.error(f"{expected} separated by commas for {key}", repr(self.options[key])) from None


def _whole(text: str) -> int:
    value = int(text)
    if abs(value) > _LARGEST_INTEGER:
        raise ValueError(text)
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def parse_cfg(text: str, source: str) -> list[Section]:
    """The sections of a .cfg in order, `[net]` first.

    Args:
        text: of the file.
        source: its name, for messages.

    Raises:
        CheckpointError: where a line is neither a section, an option nor a comment, or `[net]` is not first.
    """
    sections: list[Section] = []
    for number, raw_line in enumerate(text.splitlines(), start=1):
        line = raw_line.split("#")[0].split(";")[0].strip()
        if not line:
            continue
        if line.startswith("[") and line.endswith("]"):
            sections.append(Section(name=line[1:-1].strip().lower(), options={}, line=number, source=source))
        elif "=" in line and sections:
            key, _, value = line.partition("=")
            sections[-1].options[key.strip()] = value.strip()
        else:
            raise CheckpointError(
                f"{source}:{number}",
                expected="[section], key=value or # comment",
                got=repr(line[:60]),
                fix="give a Darknet .cfg, or correct the line",
            )
    if not sections or sections[0].name not in ("net", "network"):
        raise CheckpointError(
            source,
            expected="a Darknet .cfg that begins with [net]",
            got=f"[{sections[0].name}]" if sections else "no section",
            fix="give the .cfg that belongs to the .weights",
        )
    return sections


def write_cfg(sections: list[Section]) -> str:
    """The text of sections, which `parse_cfg` reads back."""
    return "\n".join(
        f"[{section.name}]\n" + "".join(f"{key}={value}\n" for key, value in section.options.items())
        for section in sections
    )


def read_tree(cfg_path: Path, section: Section) -> str | None:
    """The text of the class hierarchy that a section names with `tree`, or None.

    The name is looked for as it stands, from the .cfg's folder, and beside the .cfg: the authors' files name it from
    Darknet's own folder.

    Raises:
        CheckpointError: where it is in none of these places.
    """
    name = section.text("tree", "")
    if not name:
        return None
    for path in (cfg_path.parent / name, cfg_path.parent / Path(name).name):
        if path.is_file():
            return read_text(path, "the class hierarchy that the .cfg names")
    raise section.error(
        "the class hierarchy that it names", f"no file {name}", f"put {Path(name).name} beside {cfg_path.name}"
    )


def read_cfg(path: Path) -> str:
    """The text of a .cfg.

    Raises:
        CheckpointError: where it is not there or no text.
    """
    return read_text(path, "the .cfg of a Darknet network", fix="put the .cfg beside the .weights, under the same name")


def read_text(path: Path, expected: str, fix: str = "check the path") -> str:
    """The text of a file.

    Args:
        path: of the file.
        expected: what it is, for the message.
        fix: what to do where it cannot be read.

    Raises:
        CheckpointError: where it is not there or no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        got = getattr(error, "strerror", None) or "a file that is not text"
        raise CheckpointError(str(path), expected=expected, got=got, fix=fix) from error


def read_weights(path: Path) -> NDArray[np.float32]:
    """The numbers of a .weights file, in the order of the layers, (count,).

    Raises:
        CheckpointError: where it is not there, or too short for its header.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            str(path), expected="a Darknet .weights file", got=str(error.strerror), fix="check the path"
        ) from error
    version = np.frombuffer(content[:12], dtype="<i4") if len(content) >= 12 else np.zeros(0, np.int32)
    header_size = 0
    if len(version) == 3:
        major, minor = int(version[0]), int(version[1])
        is_wide = major * 10 + minor >= _VERSION_WITH_WIDE_COUNTER and major < 1000 and minor < 1000
        header_size = 20 if is_wide else 16
    if header_size == 0 or len(content) < header_size or (len(content) - header_size) % 4:
        raise CheckpointError(
            str(path),
            expected="a Darknet header and float32 numbers",
            got=f"{len(content)} bytes",
            fix="download or copy it again",
        )
    return np.frombuffer(content, dtype="<f4", offset=header_size)
