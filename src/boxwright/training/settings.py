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
