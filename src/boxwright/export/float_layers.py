"""Which nodes must stay in float32 so that a detector in half precision finds what it found: searched, not guessed.

The graph with its types in half precision runs on ONNX Runtime, which rounds to float16 after each node; what it
detects is compared with the source. Where the two differ too much, parts of the network are tried alone in half
precision, those that harm most are put back to float32 until the detections agree, and within these what can is set
free again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from boxwright.core.errors import VerificationError
from boxwright.core.manifest import VerificationRecord
from boxwright.export.verify import TOLERANCES, check

# Compares a graph, in which these nodes compute in half precision, with the source.
Trial = Callable[[frozenset[str]], VerificationRecord]
_NUM_PARTS = 12
_PIECES_OF_A_PART = 3


def find_float_layers(candidates: Sequence[str], trial: Trial, *, precision: str = "fp16") -> tuple[str, ...]:
    """The nodes that must stay in float32, in the order of the graph; none where all may be in half precision.

    Args:
        candidates: nodes that may compute in half precision, in the order of the graph.
        trial: of a set of them.
        precision: whose tolerance the detections are held to.

    Raises:
        VerificationError: where the detections differ with all of them in float32 too.
    """
    everything = frozenset(candidates)

    def agrees(in_float: frozenset[str]) -> bool:
        return _agrees(trial(everything - in_float), precision)

    if agrees(frozenset()):
        return ()
    parts = _parts(candidates)
    harms = [_harm(trial(part)) for part in parts]
    worst_first = [parts[index] for index in sorted(range(len(parts)), key=lambda index: -harms[index])]
    held = worst_first[: _fewest(worst_first, agrees)]
    kept = frozenset().union(*held)
    for part in held:
        for piece in _pieces([name for name in candidates if name in part]):
            if len(kept) > len(piece) and agrees(kept - piece):
                kept -= piece
    return tuple(name for name in candidates if name in kept)


def _fewest(parts: Sequence[frozenset[str]], agrees: Callable[[frozenset[str]], bool]) -> int:
    """How many of the first parts must be in float32; more parts in float32 are taken to harm less."""
    too_few, enough = 0, len(parts)
    if not agrees(frozenset().union(*parts)):
        raise VerificationError(
            "the network's detections differ from the source's even with all of its layers in float32; "
            "nothing was written"
        )
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if agrees(frozenset().union(*parts[:middle])):
            enough = middle
        else:
            too_few = middle
    return enough


def _parts(candidates: Sequence[str]) -> list[frozenset[str]]:
    size = max(1, math.ceil(len(candidates) / _NUM_PARTS))
    return [frozenset(candidates[start : start + size]) for start in range(0, len(candidates), size)]


def _pieces(names: Sequence[str]) -> list[frozenset[str]]:
    size = max(1, math.ceil(len(names) / _PIECES_OF_A_PART))
    return [frozenset(names[start : start + size]) for start in range(0, len(names), size)]


def _agrees(record: VerificationRecord, precision: str) -> bool:
    try:
        check(record, precision, "")
    except VerificationError:
        return False
    return True


def _harm(record: VerificationRecord) -> float:
    """How far detections are off, in units of what is allowed."""
    tolerance = TOLERANCES["fp16"]
    unmatched = (1 - record.matched_fraction) / (1 - tolerance.matched_fraction)
    return max(
        unmatched,
        record.worst_box_difference / tolerance.box_difference,
        record.worst_score_difference / tolerance.score_difference,
    )
