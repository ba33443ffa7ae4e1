"""Settings of a run in a JSON file: those that a run writes as `train.json`, whole or in part."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boxwright.core.codec import decode_fields, to_jsonable
from boxwright.core.errors import InputError, ManifestError
from boxwright.training.config import Augmentation, TrainConfig


def read_settings(path: Path) -> dict[str, Any]:
    """The settings that a file holds, by the names of `TrainConfig`'s attributes and with their types.

    Raises:
        InputError: where it cannot be read, a key is unknown, or a value has the wrong type.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"--config {path}", expected="a file that can be read", got=str(error.strerror), fix="check the path"
        ) from error
    except ValueError as error:
        raise InputError(
            f"--config {path}", expected="a JSON object of settings", got=str(error), fix="mend the file"
        ) from error
    try:
        return decode_fields(TrainConfig, document, str(path))
    except ManifestError as error:
        raise InputError(
            f"--config {error.what}", expected=error.expected, got=error.got, fix="mend the file"
        ) from error


def merge_settings(from_file: Mapping[str, Any], given: Mapping[str, Any]) -> TrainConfig:
    """The configuration of what a file says and what was given besides, which goes first.

    Args:
        from_file: by the names of `TrainConfig`'s attributes.
        given: likewise; those of `Augmentation` under their own names.

    Raises:
        InputError: where the values do not fit.
    """
    names = {field.name for field in dataclasses.fields(Augmentation)}
    varied = {name: value for name, value in given.items() if name in names}
    plain = {name: value for name, value in given.items() if name not in names}
    augmentation = dataclasses.replace(from_file.get("augmentation", Augmentation()), **varied)
    return TrainConfig(**{**from_file, **plain, "augmentation": augmentation})


def settings_to_json(config: TrainConfig) -> str:
    """The settings as a file's text."""
    return json.dumps(to_jsonable(config), indent=2) + "\n"


def check_same_settings(begun: Mapping[str, Any], wanted: Mapping[str, Any], path: Path, *, what: str) -> None:
    """Raise `InputError` where what is to go on was begun with other settings, and name each that differs.

    Args:
        begun: settings by name that were kept.
        wanted: likewise, that are asked for now.
        path: of what was kept.
        what: goes on, in a word.
    """
    different = [
        f"{name} {wanted.get(name)!r} instead of {begun.get(name)!r}"
        for name in sorted({*begun, *wanted})
        if begun.get(name) != wanted.get(name)
    ]
    if different:
        raise InputError(
            f"--resume {path}",
            expected=f"the settings that the {what} was begun with",
            got=", ".join(different),
            fix=f"pass the same ones, or start a new {what} in another folder",
        )
