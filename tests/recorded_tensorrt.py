"""A `tensorrt` module for tests that has what a generation of the real one has, and nothing else.

`tensorrt_api/signatures.json` was recorded from the real modules (see `tensorrt_api/record.py`). A class that a test
plays gets the recorded members alone: to use one that this generation lacks is an AttributeError, to call one with
other arguments than it takes a TypeError, to set one that cannot be set an AttributeError.
"""

from __future__ import annotations

import enum
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

SIGNATURES: dict[str, dict[str, Any]] = json.loads(
    (Path(__file__).parent / "tensorrt_api" / "signatures.json").read_text()
)
GENERATIONS = tuple(SIGNATURES)
_SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")


def recorded_module(
    version: str,
    implementations: Mapping[str, type],
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> ModuleType:
    """A module `tensorrt` of a generation.

    Args:
        version: one of `GENERATIONS`.
        implementations: of classes, by name; what they keep for themselves is named with an underscore. A class that
            this generation lacks is left out. The rest are there as empty classes to derive from.
        functions: of the module, by name.
    """
    recorded = SIGNATURES[version]
    module = ModuleType("tensorrt")
    module.__version__ = version  # type: ignore[attr-defined]
    for name, members in recorded["enums"].items():
        setattr(module, name, enum.IntEnum(name, members))
    for name, members in recorded["classes"].items():
        implementation = implementations.get(name)
        setattr(
            module, name, _interface(name, members) if implementation is None else _held(implementation, name, members)
        )
    for name, function in (functions or {}).items():
        if name in recorded["functions"]:
            setattr(module, name, _checked(function, name, recorded["functions"][name]))
    return module


def _interface(name: str, members: Mapping[str, Any]) -> type:
    """A class to derive from, as of a logger; its methods do nothing."""
    methods = {member: lambda self, *args: None for member, kind in members.items() if isinstance(kind, list)}
    methods.pop("__init__", None)
    if "Severity" in members:  # of loggers
        severity = enum.IntEnum("Severity", {level: number for number, level in enumerate(_SEVERITIES)})
        return type(name, (), {**methods, **severity.__members__, "Severity": severity})
    return type(name, (), methods)


def _held(implementation: type, name: str, members: Mapping[str, Any]) -> type:
    """An implementation that shows nothing but the recorded members."""

    def get(self: Any, attribute: str) -> Any:
        # What starts with an underscore, and what a class derived in the product or a test adds, is its own.
        own = any(attribute in vars(cls) for cls in type(self).__mro__ if cls is not held and issubclass(cls, held))
        if attribute.startswith("_") or own:
            return object.__getattribute__(self, attribute)
        if attribute not in members:
            raise AttributeError(f"tensorrt.{name} has no attribute {attribute!r} in this generation")
        value = object.__getattribute__(self, attribute)
        return _checked(value, attribute, members[attribute]) if isinstance(members[attribute], list) else value

    def put(self: Any, attribute: str, value: Any) -> None:
        if not attribute.startswith("_") and members.get(attribute) != "settable" and type(self) is held:
            raise AttributeError(f"tensorrt.{name}.{attribute} cannot be set in this generation")
        object.__setattr__(self, attribute, value)

    class Recorded(type):
        """The class itself shows no more than its objects do."""

        def __getattribute__(cls, attribute: str) -> Any:
            if (
                not attribute.startswith("_")
                and attribute not in members
                and cls.__name__ == name
                and attribute != "mro"
            ):
                raise AttributeError(f"tensorrt.{name} has no attribute {attribute!r} in this generation")
            return super().__getattribute__(attribute)

    held = Recorded(name, (implementation,), {"__getattribute__": get, "__setattr__": put})
    return held


def _checked(function: Callable[..., Any], name: str, overloads: list[list[str]]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if overloads and not any(_takes(parameters, args, kwargs) for parameters in overloads):
            raise TypeError(f"{name}: {len(args)} arguments and {sorted(kwargs)} fit none of {overloads}")
        return function(*args, **kwargs)

    return call


def _takes(parameters: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    names = [parameter.rstrip("=") for parameter in parameters]
    needed = {parameter for parameter in parameters if not parameter.endswith("=")}
    given = {*names[: len(args)], *kwargs}
    return len(args) <= len(names) and set(kwargs) <= set(names[len(args) :]) and needed <= given
