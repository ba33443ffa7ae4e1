"""Finds the detector families: every file in `models/` is one, and its name is the family's.

A family file has `VARIANTS` (name -> frozen config with `size_hw`), `build(variant, num_classes)`, `IMPORTS` (which
public checkpoints it reads, for people) and `import_checkpoint(state, variant)`. A family whose files describe the
whole network claims their suffixes with `NETWORK_SUFFIXES` and opens them with `open_network(path)`; its
`rebuild(variant, state)` makes the module for a checkpoint of ours from what the state dict says of the network, or
gives None where a variant says it. Where people know a variant by another name too, `ALIASES` leads from that to it.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from boxwright.core.errors import InputError
from boxwright.models.common.checkpoint import StateDict
from boxwright.models.common.detector import DetectionModel

_PACKAGE = "boxwright.models"


class VariantConfig(Protocol):
    """What the config of every variant has."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """The input size that the variant is usually run at."""


@dataclass(frozen=True, kw_only=True)
class ImportedWeights:
    """A foreign checkpoint's weights under our names.

    Attributes:
        state: for the module that `build` makes with `num_classes`.
        num_classes: that the checkpoint was trained on.
    """

    state: StateDict
    num_classes: int


@dataclass(frozen=True, kw_only=True)
class NetworkFile:
    """A file that describes a whole network and not weights alone.

    Attributes:
        module: with the weights that the file holds.
        size_hw: the input size that it names.
        class_names: where the file has them too.
    """

    module: DetectionModel
    size_hw: tuple[int, int]
    class_names: tuple[str, ...] | None = None


class Family(Protocol):
    """The module object of a family's file."""

    VARIANTS: Mapping[str, VariantConfig]
    IMPORTS: str

    def build(self, variant: str, num_classes: int) -> DetectionModel:
        """A module of that variant with random weights."""

    def import_checkpoint(self, state: StateDict, variant: str) -> ImportedWeights:
        """The weights of the authors' checkpoint under our names."""


def open_network(path: Path) -> NetworkFile | None:
    """The network in a file whose suffix a family claims with `NETWORK_SUFFIXES`, or None.

    Such a family has `open_network(path) -> NetworkFile` too.
    """
    family = _family_that_claims(path)
    return None if family is None else cast("NetworkFile", cast("Any", family).open_network(path))


def _family_that_claims(path: Path) -> Family | None:
    suffix = path.suffix.lower()
    return next((family for family in families().values() if suffix in getattr(family, "NETWORK_SUFFIXES", ())), None)


def variant_named(model: str) -> str:
    """The name of the variant that a checkpoint keeps for a `--model`: of a network's file that without its suffix."""
    if _family_that_claims(Path(model)) is not None:
        return Path(model).stem
    aliases: dict[str, str] = {}
    for family in families().values():
        aliases |= getattr(family, "ALIASES", {})
    return aliases.get(model, model)


def rebuild(family: str, variant: str, state: StateDict) -> DetectionModel | None:
    """The network that a checkpoint of ours describes by itself; None where a variant gives it."""
    make = getattr(families().get(family), "rebuild", None)
    return None if make is None else cast("DetectionModel | None", make(variant, state))


@functools.cache
def families() -> dict[str, Family]:
    """All families by name."""
    package = importlib.import_module(_PACKAGE)
    names = sorted(
        module.name
        for module in pkgutil.iter_modules(package.__path__)
        if not module.ispkg and not module.name.startswith("_")
    )
    return {name: cast("Family", _import_family(name)) for name in names}


def _import_family(name: str) -> Any:
    module = importlib.import_module(f"{_PACKAGE}.{name}")
    missing = [part for part in ("VARIANTS", "IMPORTS", "build", "import_checkpoint") if not hasattr(module, part)]
    if missing:
        lacking = ", ".join(missing)
        raise TypeError(f"models/{name}.py: expected a detector family, got no {lacking}; see docs/adding.md")
    return module


def variant_names() -> tuple[str, ...]:
    """The names of all variants of all families."""
    return tuple(variant for family in families().values() for variant in family.VARIANTS)


def family_of(variant: str) -> str:
    """The name of the family that a variant belongs to.

    Raises:
        InputError: where there is no such variant.
    """
    for name, family in families().items():
        if variant in family.VARIANTS:
            return name
    raise InputError("--model", expected="one of " + ", ".join(variant_names()), got=repr(variant), fix="pass one")
