"""What a benchmark has measured so far, on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import boxwright
from boxwright.bench.candidate import Candidate, content_sha256
from boxwright.bench.results import Settings
from boxwright.core.codec import to_jsonable
from boxwright.core.detections import Detections
from boxwright.core.errors import InputError, OutputError
from boxwright.core.files import write_text

_STATE_FILE, _LOCK_FILE = "state.json", "lock"
# Rises when what is kept changes, so that no run goes on from what it cannot read.
_STATE_VERSION = 3
Json = dict[str, Any]


class RawDetections(NamedTuple):
    """What a candidate's process found, in the model's classes."""

    detections: tuple[Detections, ...]  # of each image, none for one that could not be used
    unreadable: dict[int, str]  # index of the image: reason


def fingerprint(candidates: Sequence[Candidate], settings: Settings, data_sha256: str) -> str:
    """A name for the run: the same only where the same files are measured in the same way on the same data."""
    limits = {"min_launches", "max_launches", "time_limit_s"}  # a run may go on with others
    document = {
        "boxwright": boxwright.__version__,
        "state": _STATE_VERSION,
        "candidates": [{**to_jsonable(entry), "sha256": content_sha256(entry.model)} for entry in candidates],
        "settings": {key: value for key, value in to_jsonable(settings).items() if key not in limits},
        "data": data_sha256,
    }
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:32]


@dataclass
class RunState:
    """The measurements of a run, by the candidates' names, in a folder.

    Attributes:
        directory: that holds them.
        accuracy: the reply to `open` of the process that ran over all images, of each candidate that has.
        launches: for each complete launch the record of each candidate that took part.
        throughput: the reply of each candidate that was searched.
        disturbances: of what is measured, a sentence each.
        lock: held while the run is under way.
    """

    directory: Path
    accuracy: dict[str, Json] = field(default_factory=dict)
    launches: list[dict[str, Json]] = field(default_factory=list)
    throughput: dict[str, Json] = field(default_factory=dict)
    disturbances: list[str] = field(default_factory=list)
    lock: IO[str] | None = None

    @classmethod
    def resume_or_begin(cls, directory: Path) -> RunState:
        """Read what the folder holds; a new run where it holds nothing that can be used.

        Raises:
            OutputError: where the folder cannot be made.
            InputError: where the same run is under way in another process.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = _lock(directory / _LOCK_FILE)
        except OSError as error:
            raise OutputError(
                str(directory),
                expected="a folder for measurements that can be written",
                got=error.strerror or type(error).__name__,
                fix="free some space, or set XDG_CACHE_HOME to another folder",
            ) from error
        try:
            document = json.loads((directory / _STATE_FILE).read_text(encoding="utf-8"))
            state = cls(
                directory,
                accuracy=document["accuracy"],
                launches=document["launches"],
                throughput=document["throughput"],
                disturbances=document["disturbances"],
                lock=lock,
            )
            state.accuracy = {name: reply for name, reply in state.accuracy.items() if state._has_detections(name)}
            return state
        except (OSError, ValueError, KeyError, TypeError):  # none, or one of another version
            return cls(directory, lock=lock)

    @property
    def size(self) -> int:
        """How many measurements there are."""
        return len(self.accuracy) + len(self.launches) + len(self.throughput)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is measured yet."""
        return self.size == 0

    def describe(self) -> str:
        """What is measured, in words."""
        counts = (
            ("{} launch", "{} launches", len(self.launches)),
            ("the mAP of {} candidate", "the mAP of {} candidates", len(self.accuracy)),
            ("the throughput of {} candidate", "the throughput of {} candidates", len(self.throughput)),
        )
        return ", ".join((one if count == 1 else many).format(count) for one, many, count in counts if count)

    def save(self) -> None:
        """Write the measurements.

        Raises:
            OutputError: where they cannot be written.
        """
        document = {
            "accuracy": self.accuracy,
            "launches": self.launches,
            "throughput": self.throughput,
            "disturbances": self.disturbances,
        }
        write_text(self.directory / _STATE_FILE, json.dumps(document))

    def detections_path(self, name: str) -> Path:
        """Where the process of a candidate writes what it finds."""
        return self.directory / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.npz"

    def _has_detections(self, name: str) -> bool:
        try:
            with np.load(self.detections_path(name)) as arrays:
                return "counts" in arrays
        except (OSError, ValueError, zipfile.BadZipFile):
            return False

    def read_detections(self, name: str) -> RawDetections:
        """What a candidate found, in its own classes."""
        with np.load(self.detections_path(name)) as arrays:
            ends: NDArray[np.int64] = np.cumsum(arrays["counts"])
            rows = [arrays[key] for key in ("boxes_xyxy", "scores", "class_ids")]
        columns = [np.split(array, ends[:-1]) for array in rows]
        detections = tuple(
            Detections(boxes_xyxy=boxes, scores=scores, class_ids=class_ids)
            for boxes, scores, class_ids in zip(*columns, strict=True)
        )
        return RawDetections(detections, {int(index): reason for index, reason in self.accuracy[name]["unreadable"]})

    def release(self) -> None:
        """Let another process go on with the run."""
        if self.lock is not None:
            self.lock.close()

    def discard(self) -> None:
        """Remove the folder; the run is over."""
        shutil.rmtree(self.directory, ignore_errors=True)


def _lock(path: Path) -> IO[str] | None:
    """Hold the file for this process as long as it is open; None where the system has no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    stream = path.open("w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        stream.close()
        raise InputError(
            "boxwright bench",
            expected="one run of the same candidates, data and settings at a time",
            got="another that is under way",
            fix="wait until it is over; they would slow each other down too",
        ) from error
    return stream
