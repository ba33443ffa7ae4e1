"""Opening what a verb was given as a model: an exported file, or a training checkpoint on PyTorch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from boxwright.core.errors import BoxwrightError, InputError, MissingDependencyError, UnsupportedError

if TYPE_CHECKING:
    from boxwright.runtimes.detector import Detector


class RefusedCandidateError(BoxwrightError):
    """A candidate could not be made; the message is that of the error before."""


class RefusedUnsupportedError(UnsupportedError):
    """A candidate that cannot be; the message is that of the error before."""

    def __init__(self, reason: str) -> None:
        Exception.__init__(self, reason)


CHECKPOINT_SUFFIXES = (".pth", ".pt", ".ckpt", ".weights")


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """What an author's checkpoint does not say of itself; a checkpoint of `boxwright train` needs none of it.

    Attributes:
        variant: e.g. "yolox-nano".
        labels: what `load_labels` takes.
        preprocess: name of a preset.
        size_hw: of the network's input.
    """

    variant: str | None = None
    labels: str | None = None
    preprocess: str | None = None
    size_hw: tuple[int, int] | None = None


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether this file is a training checkpoint, by its suffix."""
    return Path(path).suffix.lower() in CHECKPOINT_SUFFIXES


def open_detector(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    device: str | None = None,
    precision: str | None = None,
    num_threads: int = 0,
    conf: float | None = None,
    iou: float | None = None,
    checkpoint: CheckpointOptions | None = None,
) -> Detector:
    """Open an exported file with an engine, or a checkpoint with PyTorch.

    Args:
        path: of either.
        backend: as for `Detector`; "torch" or None for a checkpoint.
        device: as for `Detector`.
        precision: as for `Detector`; "fp32" or None for a checkpoint.
        num_threads: of the CPU; 0 leaves it to the engine.
        conf: score threshold; None takes the model's own.
        iou: IoU threshold of the NMS; None takes the model's own.
        checkpoint: what an author's checkpoint does not say of itself.

    Raises:
        InputError: where these do not go together, or the file cannot be opened.
    """
    if is_checkpoint(path):
        return _open_checkpoint(
            path, backend, device, precision, num_threads, conf, iou, checkpoint or CheckpointOptions()
        )
    from boxwright.runtimes.opencv import is_opencv_file

    if checkpoint is not None and checkpoint == CheckpointOptions(labels=checkpoint.labels) and is_opencv_file(path):
        return _open_classical(path, backend, device, precision, num_threads, conf, iou, checkpoint.labels)
    if checkpoint is not None and checkpoint != CheckpointOptions():
        raise InputError(
            str(path),
            expected="a training checkpoint ("
            + ", ".join(CHECKPOINT_SUFFIXES)
            + ") with --model, --labels, --preprocess "
            "or --imgsz, or a file of OpenCV with --labels",
            got="another file, which says these things of itself",
            fix="leave these options out",
        )
    from boxwright.runtimes.detector import Detector

    return Detector(
        path, backend=backend, device=device, precision=precision, num_threads=num_threads, conf=conf, iou=iou
    )


def _open_classical(
    path: str | os.PathLike[str],
    backend: str | None,
    device: str | None,
    precision: str | None,
    num_threads: int,
    conf: float | None,
    iou: float | None,
    labels: str | None,
) -> Detector:
    """A file of OpenCV, whose one class is what `labels` says."""
    from dataclasses import replace

    from boxwright.core.manifest import Manifest
    from boxwright.runtimes.backend import open_backend
    from boxwright.runtimes.detector import Detector

    opened = open_backend(path, backend=backend, device=device, precision=precision, num_threads=num_threads)
    try:
        manifest = Manifest.from_json(opened.manifest_json or "", str(path))
        if labels is not None:
            manifest = replace(manifest, class_names=_names_of_one(labels))
        return Detector.from_backend(opened, manifest, conf=conf, iou=iou)
    except BaseException:
        opened.close()
        raise


def _names_of_one(labels: str) -> tuple[str, ...]:
    """As `load_labels`, and a single word is a name, since there is one class alone."""
    from boxwright.core.labels import BUILT_IN, load_labels

    is_word = labels.strip() != "" and not set(labels) & {",", ".", os.sep} and labels not in BUILT_IN
    return (labels,) if is_word and not Path(labels).exists() else load_labels(labels)


def _open_checkpoint(
    path: str | os.PathLike[str],
    backend: str | None,
    device: str | None,
    precision: str | None,
    num_threads: int,
    conf: float | None,
    iou: float | None,
    options: CheckpointOptions,
) -> Detector:
    for wish, allowed in ((backend, (None, "torch")), (precision, (None, "fp32"))):
        if wish not in allowed:
            raise UnsupportedError(
                str(path),
                expected=f"{allowed[1]} for a training checkpoint",
                got=repr(wish),
                fix="export it with 'boxwright export' and run the exported file",
            )
    if num_threads > 0 and "torch" not in sys.modules:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)  # PyTorch reads it when it is imported
    try:
        from boxwright.models import load_model
        from boxwright.runtimes.torch import TorchBackend
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or "torch", extra="export", needed_for=str(path)) from error
    from boxwright.runtimes.detector import Detector

    loaded = load_model(
        os.fspath(path),
        model=options.variant,
        class_names=options.labels,
        preprocess=options.preprocess,
        size_hw=options.size_hw,
    )
    manifest = loaded.manifest()
    return Detector.from_backend(
        TorchBackend.from_module(loaded.module, manifest, device=device or "cpu"), manifest, conf=conf, iou=iou
    )


def open_candidate(
    path: str,
    *,
    backend: str | None,
    device: str | None,
    precision: str | None,
    num_threads: int,
    conf: float | None,
    iou: float | None,
    variant: str | None = None,
    labels: str | None = None,
    preprocess: str | None = None,
    size_hw: list[int] | None = None,
) -> Detector:
    """Open a checkpoint in a process of `boxwright bench`, which knows this function by its name alone.

    The arguments are those of `open_detector`, of JSON's types.
    """
    options = CheckpointOptions(
        variant=variant,
        labels=labels,
        preprocess=preprocess,
        size_hw=None if size_hw is None else (size_hw[0], size_hw[1]),
    )
    return open_detector(
        path,
        backend=backend,
        device=device,
        precision=precision,
        num_threads=num_threads,
        conf=conf,
        iou=iou,
        checkpoint=options,
    )


def refuse_candidate(
    path: str,
    *,
    backend: str | None,
    device: str | None,
    precision: str | None,
    num_threads: int,
    conf: float | None,
    iou: float | None,
    unsupported: bool,
    reason: str,
) -> Detector:
    """Stand for a candidate that could not be made, so that its row says why; called by name like `open_candidate`.

    Raises:
        RefusedCandidateError or RefusedUnsupportedError: always.
    """
    raise (RefusedUnsupportedError if unsupported else RefusedCandidateError)(reason)
