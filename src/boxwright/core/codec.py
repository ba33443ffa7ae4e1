"""Frozen dataclasses to JSON objects and back, strictly: unknown keys and wrong types are errors.

A dataclass that is a member of a union carries `kind: ClassVar[str]`, written as the key "kind".
"""

from __future__ import annotations

import dataclasses
import math
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from boxwright.core.errors import InputError, ManifestError

T = TypeVar("T")


def to_jsonable(value: Any) -> Any:
    """A dataclass, tuple, dict, path or scalar as JSON-compatible objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: to_jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        kind = getattr(type(value), "kind", None)
        return fields if kind is None else {"kind": kind, **fields}
    if isinstance(value, (tuple, list)):
        return [to_jsonable(item) for item in value]
    if isinstance(value, dict):
        return {key: to_jsonable(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value


def from_jsonable(cls: type[T], data: Any, path: str = "manifest") -> T:
    """The inverse of `to_jsonable` for a dataclass type.

    Raises:
        ManifestError: where a key is unknown or missing, or a value has the wrong type or is refused by the class.
    """
    values = decode_fields(cls, data, path)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    missing = [
        field.name
        for field in fields
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ManifestError(path, expected="the key " + ", ".join(missing), got="none", fix="export the model again")
    try:
        return cls(**values)
    except InputError as error:
        raise ManifestError(f"{path}: {error.what}", expected=error.expected, got=error.got, fix=error.fix) from error


def decode_fields(cls: type[Any], data: Any, path: str) -> dict[str, Any]:
    """The values of those fields of a dataclass type that the data has, not yet put together.

    Raises:
        ManifestError: where a key is unknown or a value has the wrong type.
    """
    if not isinstance(data, dict):
        raise _error(path, f"an object ({cls.__name__})", data)
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    keys = set(data) - ({"kind"} if getattr(cls, "kind", None) is not None else set())
    unknown = sorted(keys - set(fields))
    if unknown:
        raise ManifestError(
            path,
            expected="only the keys " + ", ".join(fields),
            got="the unknown key " + ", ".join(repr(key) for key in unknown),
            fix="update boxwright, or remove the key",
        )
    return {name: _decode(hints[name], data[name], f"{path}.{name}") for name in fields if name in data}


def _decode(hint: Any, value: Any, path: str) -> Any:
    origin = get_origin(hint)
    if origin is Literal:
        if value not in get_args(hint):
            raise _error(path, "one of " + ", ".join(map(str, get_args(hint))), value)
        return value
    if origin is Union or origin is types.UnionType:
        return _decode_union(get_args(hint), value, path)
    if origin is tuple:
        return _decode_tuple(get_args(hint), value, path)
    if origin is dict:
        if not isinstance(value, dict):
            raise _error(path, "an object", value)
        return {key: _decode(get_args(hint)[1], item, f"{path}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_jsonable(hint, value, path)  # type: ignore[arg-type]
    return _decode_scalar(hint, value, path)


def _decode_scalar(hint: Any, value: Any, path: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number and math.isfinite(value):
        return float(value)
    if hint is int and is_number and isinstance(value, int):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is type(None) and value is None:
        return None
    raise _error(path, getattr(hint, "__name__", str(hint)), value)


def _decode_tuple(item_hints: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _error(path, "a list", value)
    if len(item_hints) == 2 and item_hints[1] is Ellipsis:
        return tuple(_decode(item_hints[0], item, f"{path}[{index}]") for index, item in enumerate(value))
    if len(value) != len(item_hints):
        raise _error(path, f"a list of {len(item_hints)}", value)
    pairs = zip(item_hints, value, strict=True)
    return tuple(_decode(hint, item, f"{path}[{index}]") for index, (hint, item) in enumerate(pairs))


def _decode_union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    concrete = [option for option in options if option is not type(None)]
    if len(concrete) == 1:
        return _decode(concrete[0], value, path)
    kinds = {option.kind: option for option in concrete}
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in kinds:
        raise _error(f"{path}.kind", "one of " + ", ".join(kinds), kind)
    return from_jsonable(kinds[kind], value, path)


def _error(path: str, expected: str, value: Any) -> ManifestError:
    shown = repr(value)
    return ManifestError(
        path,
        expected=expected,
        got=shown if len(shown) <= 60 else shown[:57] + "...",
        fix="export the model again or update boxwright",
    )
