"""What the ONNX parser of each TensorRT reads."""

from __future__ import annotations

from dataclasses import dataclass

from boxwright.core.errors import UnsupportedError


@dataclass(frozen=True, kw_only=True)
class ParserLimits:
    """What an ONNX parser reads.

    Attributes:
        newest_opset: of the operators.
        largest_k: of a TopK.
        has_computed_k: whether the k of a TopK may be the result of other nodes.
        sorts_integers: in a TopK.
        reduces_integers: in a ReduceSum, ReduceMin and the like.
        has_layer_normalization: as an operator.
        has_uint8_inputs: so that a graph can take pixels.
    """

    newest_opset: int
    largest_k: int = 3840
    has_computed_k: bool = True
    sorts_integers: bool = True
    reduces_integers: bool = True
    has_layer_normalization: bool = True
    has_uint8_inputs: bool = True


# Source: docs/operators.md of github.com/onnx/onnx-tensorrt, branches 8.5-GA, 8.6-GA and 10.0-GA; for k, NvInfer.h.
_LIMITS = {
    (8, 5): ParserLimits(
        newest_opset=17,
        has_computed_k=False,
        sorts_integers=False,
        reduces_integers=False,
        has_layer_normalization=False,
        has_uint8_inputs=False,
    ),
    (8, 6): ParserLimits(newest_opset=17, reduces_integers=False),
    (10, 0): ParserLimits(newest_opset=20),
}
OLDEST_VERSION = min(_LIMITS)
OLDEST_LIMITS = _LIMITS[OLDEST_VERSION]


def limits_of(version: str) -> ParserLimits:
    """What the ONNX parser of a version reads; a version that is not in the table reads what the one before it does.

    Raises:
        UnsupportedError: where it is older than 8.5.
    """
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if len(numbers) < 2 or numbers < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise UnsupportedError(
            "TensorRT", expected=f"version {oldest} or newer", got=version, fix="install a newer TensorRT"
        )
    return _LIMITS[max(known for known in _LIMITS if known <= numbers)]
