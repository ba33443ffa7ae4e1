"""What a benchmark compares: a model file on an engine, on a device, in a precision."""

from __future__ import annotations

import contextlib
import hashlib
import html
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from boxwright.core.errors import InputError
from boxwright.core.manifest import METADATA_KEY, Manifest
from boxwright.runtimes.engine_sidecar import read_sidecar, sidecar_path

# Opens an exported file. A candidate that needs more than that (a checkpoint needs PyTorch) names another opener.
FILE_OPENER = "boxwright.runtimes.detector:Detector"
_CHUNK_BYTES = 1 << 20
_IR_MANIFEST = re.compile(re.escape(METADATA_KEY) + r'\s+value="([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model file and how to run it.

    Attributes:
        model: path of a file or folder.
        backend: engine; None lets the file decide.
        device: to run on.
        precision: of the arithmetic.
        num_threads: of the CPU; 0 leaves it to the engine.
        opener: "module:callable" that takes the path and the keywords backend, device, precision, num_threads, conf
            and iou, and gives a `Detector`; called in a process of the candidate's own.
        opener_options: further keywords for it, of JSON's types.
        name: tells it from the others of a run; made up by `with_names` where empty.
        shown_model: path to show instead, where `model` is a file made on the way.
        python: interpreter of another environment to run it in; this process's where None.
        variation: what else tells it from others of the same model, such as an input size.
    """

    model: str
    backend: str | None = None
    device: str = "cpu"
    precision: str = "fp32"
    num_threads: int = 0
    opener: str = FILE_OPENER
    opener_options: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    shown_model: str | None = None
    variation: str | None = None
    python: str | None = None

    @property
    def model_shown(self) -> str:
        """The path that reports show."""
        return self.shown_model or self.model


def with_names(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same candidates, each with a name of its own: as short as tells them apart."""
    named = []
    for index, candidate in enumerate(candidates):
        others = [other for position, other in enumerate(candidates) if position != index]
        parts = [Path(candidate.model_shown).name]
        for attribute in ("variation", "backend", "precision"):
            if any(getattr(other, attribute) != getattr(candidate, attribute) for other in others):
                parts.append(getattr(candidate, attribute) or "auto")
        # An engine mostly has one device, which its name tells.
        if any(_is_same_but_for_device(other, candidate) for other in others):
            parts.append(candidate.device)
        named.append(candidate.name or " ".join(parts))
    return [
        replace(candidate, name=name if named.count(name) == 1 else f"{name} #{named[: index + 1].count(name)}")
        for index, (candidate, name) in enumerate(zip(candidates, named, strict=True))
    ]


def _is_same_but_for_device(one: Candidate, other: Candidate) -> bool:
    same = ("model_shown", "variation", "backend", "precision")
    return one.device != other.device and all(getattr(one, name) == getattr(other, name) for name in same)


def check_exists(candidates: Sequence[Candidate]) -> None:
    """Raise `InputError` for the first candidate whose path does not exist."""
    for candidate in candidates:
        if not Path(candidate.model).exists():
            raise InputError(
                candidate.model, expected="a model file or folder", got="a path that does not exist", fix="check it"
            )


def model_files(path: str | os.PathLike[str]) -> list[Path]:
    """The files that a model consists of: a folder's, or the file and the weights that it keeps beside itself."""
    given = Path(path)
    if given.is_dir():
        return sorted(entry for entry in given.rglob("*") if entry.is_file())
    if given.suffix.lower() == ".onnx":
        from boxwright.runtimes.model_file import inspect_onnx

        with contextlib.suppress(InputError):  # a damaged file: whoever opens it will say so
            return [given, *inspect_onnx(given).external_paths]
    if given.suffix.lower() == ".xml":
        return [given, *(entry for entry in [given.with_suffix(".bin")] if entry.is_file())]
    return [given]


def read_manifest(path: str | os.PathLike[str]) -> Manifest | None:
    """The manifest of an ONNX file, OpenVINO model or TensorRT engine, read without it; None where there is none."""
    file = Path(path)
    if file.is_dir():
        found = sorted(file.glob("*.xml"))
        file = found[0] if len(found) == 1 else file
    try:
        if file.suffix.lower() == ".onnx":
            from boxwright.runtimes.model_file import inspect_onnx

            text = inspect_onnx(file).metadata.get(METADATA_KEY)
        elif file.suffix.lower() == ".xml":
            entry = _IR_MANIFEST.search(file.read_text(encoding="utf-8", errors="replace"))
            text = html.unescape(entry[1]) if entry else None
        elif sidecar_path(file).is_file():  # of a TensorRT engine
            return read_sidecar(file).manifest
        else:
            text = None
        return None if text is None else Manifest.from_json(text)
    except (OSError, InputError):  # whoever opens it will say what is wrong with it
        return None


def is_quantized(path: str | os.PathLike[str]) -> bool:
    """Whether the manifest inside a model file says that it is INT8."""
    manifest = read_manifest(path)
    return manifest is not None and manifest.precision == "int8"


def size_mb(path: str | os.PathLike[str]) -> float:
    """Size of the model in 10^6 bytes."""
    return sum(file.stat().st_size for file in model_files(path)) / 1e6


def content_sha256(path: str | os.PathLike[str]) -> str:
    """Hash of the model's files, their names left out."""
    digest = hashlib.sha256()
    for file in model_files(path):
        with open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()
