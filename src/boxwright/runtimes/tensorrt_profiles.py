"""Optimisation profiles of a TensorRT engine: which sizes of its inputs each takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from boxwright.core.errors import InputError

Shape = tuple[int, ...]
# Of one profile, the smallest and the largest shape of every input.
Limits = Mapping[str, tuple[Shape, Shape]]


def read_profiles(engine: Any, inputs: Sequence[str], host: frozenset[str]) -> tuple[Limits, ...]:
    """The limits of an engine's inputs.

    Args:
        engine: tensorrt.ICudaEngine.
        inputs: names of all of them.
        host: those that are read on the CPU's side, whose values count and not their shapes.
    """
    profiles = []
    for index in range(engine.num_optimization_profiles):
        limits = {}
        for name in inputs:
            shape = tuple(engine.get_tensor_shape(name))
            if name in host:
                continue
            if min(shape, default=0) >= 0:  # a fixed size needs no profile
                limits[name] = (shape, shape)
                continue
            smallest, _, largest = engine.get_tensor_profile_shape(name, index)
            limits[name] = (tuple(smallest), tuple(largest))
        profiles.append(limits)
    return tuple(profiles)


def find_profile(profiles: Sequence[Limits], shapes: Mapping[str, Shape], engine_name: str) -> int:
    """The first profile that takes inputs of these shapes.

    Args:
        profiles: of an engine.
        shapes: of its inputs, by name.
        engine_name: named in the error.

    Raises:
        InputError: where none does.
    """
    for index, profile in enumerate(profiles):
        if all(_is_between(shapes[name], *limits) for name, limits in profile.items()):
            return index
    raise InputError(
        f"inputs of {engine_name}",
        expected=" or ".join(_profile_text(profile) for profile in profiles),
        got=", ".join(f"{name} {_shape_text(shapes[name])}" for name in profiles[0]),
        fix="pass sizes within these, or build the engine with wider ones",
    )


def _is_between(shape: Shape, smallest: Shape, largest: Shape) -> bool:
    return len(shape) == len(smallest) and all(
        low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)
    )


def _profile_text(profile: Limits) -> str:
    return ", ".join(
        f"{name} {_shape_text(low)}" if low == high else f"{name} {_shape_text(low)} to {_shape_text(high)}"
        for name, (low, high) in profile.items()
    )


def _shape_text(shape: Shape) -> str:
    return "x".join(map(str, shape)) if shape else "scalar"
