"""What a training run may change in a family's loss."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import get_args

from boxwright.core.errors import InputError
from boxwright.models.common.boxes import OverlapKind


@dataclass(frozen=True, kw_only=True)
class LossOptions:
    """Changes of a loss; the defaults leave the family's own.

    Attributes:
        label_smoothing: epsilon of the class targets of objects; the background is not smoothed.
        box_loss: overlap whose loss replaces the family's own loss of boxes.
    """

    label_smoothing: float = 0.0
    box_loss: OverlapKind | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InputError(
                "--label-smoothing",
                expected="a number in [0, 1)",
                got=repr(self.label_smoothing),
                fix="pass one such as 0.1",
            )
        if self.box_loss is not None and self.box_loss not in get_args(OverlapKind):
            raise InputError(
                "--box-loss", expected=", ".join(get_args(OverlapKind)), got=repr(self.box_loss), fix="pass one of them"
            )

    def asked(self) -> tuple[str, ...]:
        """The names of the options that differ from their defaults."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) != field.default)
