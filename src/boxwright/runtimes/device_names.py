"""Names of devices, `cpu` or `cuda:1`, read in one way for every engine that numbers its GPUs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

_CPU = "cpu"


@dataclass(frozen=True, kw_only=True)
class DeviceName:
    """A kind of device, and which of these it is.

    Attributes:
        kind: such as "cuda".
        index: counted from 0.
    """

    kind: str
    index: int

    def __str__(self) -> str:
        return self.kind if self.kind == _CPU else f"{self.kind}:{self.index}"


def parse_device(device: str, kinds: Collection[str]) -> DeviceName | None:
    """Read "cuda", which is the first GPU, or "cuda:1".

    Args:
        device: as the user names it.
        kinds: that an engine has; the CPU is one alone and has no number.

    Returns:
        None where it is none of these kinds.
    """
    kind, colon, number = device.partition(":")
    if kind not in kinds or (colon and (kind == _CPU or not (number.isascii() and number.isdigit()))):
        return None
    return DeviceName(kind=kind, index=int(number or 0))
