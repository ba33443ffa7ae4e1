"""What a benchmark found as one JSON document with a versioned schema."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from boxwright.bench.results import SCHEMA_VERSION, BenchReport
from boxwright.core.codec import from_jsonable, to_jsonable
from boxwright.core.errors import InputError, ManifestError
from boxwright.core.files import write_text


def to_json(report: BenchReport) -> str:
    """The JSON document."""
    return json.dumps(to_jsonable(report), indent=2, ensure_ascii=False, allow_nan=False)


def save_report(report: BenchReport, path: str | os.PathLike[str]) -> None:
    """Write the JSON document.

    Raises:
        OutputError: where it cannot be written.
    """
    write_text(path, to_json(report) + "\n")


def load_report(path: str | os.PathLike[str]) -> BenchReport:
    """Read what `save_report` wrote, or `boxwright bench --json` printed.

    Raises:
        InputError: where it cannot be read, is no such document, or one of a newer schema.
    """
    what = f"results file {os.fspath(path)}"
    try:
        data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        got = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(
            what, expected="the JSON of 'boxwright bench'", got=got, fix="run the benchmark again"
        ) from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise InputError(
            what, expected="the JSON of 'boxwright bench'", got="no schema_version", fix="run the benchmark again"
        )
    if version > SCHEMA_VERSION:
        raise InputError(what, expected=f"schema {SCHEMA_VERSION} or older", got=str(version), fix="update boxwright")
    try:
        return from_jsonable(BenchReport, data, what)
    except ManifestError as error:
        raise InputError(
            error.what, expected=error.expected, got=error.got, fix="run the benchmark again, or update boxwright"
        ) from error
