"""What has been measured, kept on disk by what it was measured of, so that a search that was ended goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from boxwright.calibration.agreement import Agreement
from boxwright.calibration.evaluation import Evaluation
from boxwright.calibration.paired_map import PairedDifference

# To be raised whenever the same recipe gives other numbers than before.
_VERSION = 5


class EvaluationStore:
    """A file of evaluations, one JSON object a line; lines of an interrupted write are passed over.

    Args:
        folder: that holds a file for each subject; None keeps nothing, and neither does one that cannot be used.
        subject: all that the measurements hang on beside the variant: model, images, engines, machine.

    Attributes:
        trouble: why nothing is kept although a folder was given.
    """

    def __init__(self, folder: Path | None, subject: Mapping[str, object]) -> None:
        self._known: dict[str, Evaluation] = {}
        self._file: Path | None = None
        self.trouble: str | None = None
        if folder is not None:
            self._file = folder / f"{_digest({'version': _VERSION, **subject})[:24]}.jsonl"
            with self._without_file_on_failure():
                folder.mkdir(parents=True, exist_ok=True)
                self._read(self._file)
        self.num_found = 0

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: Mapping[str, object]) -> Evaluation | None:
        """What is known of a variant on certain images."""
        found = self._known.get(_digest(key))
        self.num_found += found is not None
        return found

    def put(self, key: Mapping[str, object], evaluation: Evaluation) -> None:
        """Keep an evaluation, at once on the disk."""
        digest = _digest(key)
        self._known[digest] = evaluation
        if self._file is not None:
            line = json.dumps({"key": digest, "evaluation": asdict(evaluation)})
            with self._without_file_on_failure(), open(self._file, "a", encoding="utf-8") as stream:
                stream.write(line + "\n")
                stream.flush()
                os.fsync(stream.fileno())

    def forget(self) -> None:
        """Start anew."""
        self._known.clear()
        if self._file is not None:
            with self._without_file_on_failure():
                self._file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _without_file_on_failure(self) -> Iterator[None]:
        """Keep nothing from now on where the disk refuses: a search is worth more than its notes."""
        try:
            yield
        except OSError as error:
            self.trouble = f"{self._file}: {error.strerror or error}"
            self._file = None

    def _read(self, file: Path) -> None:
        if not file.is_file():
            return
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut off by the end of its process
                entry = json.loads(line)
                self._known[entry["key"]] = _evaluation(entry["evaluation"])


def _evaluation(data: dict[str, Any]) -> Evaluation:
    difference = data["difference"]
    return Evaluation(
        agreement=Agreement(**data["agreement"]),
        difference=None if difference is None else PairedDifference(**difference),
        head_noise=data["head_noise"],
        latency_ms=data["latency_ms"],
        int8_share=data.get("int8_share"),
    )


def _digest(value: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
