"""YOLOv5 and v7: (B, N, 5 + C), centre, width and height in pixels, objectness and classes after the sigmoid."""

from __future__ import annotations

from boxwright.export.foreign import ForeignFile
from boxwright.export.heads.operations import Reading, activation_of, decoded_boxes, take_columns

EXPECTS = "an output (B, N, 5 + C) of decoded boxes"


def read(foreign: ForeignFile) -> Reading:
    """The joined output; the maps of each level, which some files give beside it, have more dimensions."""
    joined = {name: array for name, array in foreign.outputs.items() if array.ndim == 3}
    if len(joined) != 1:
        raise foreign.complain(EXPECTS)
    name, rows = next(iter(joined.items()))
    if rows.shape[2] != 5 + foreign.num_classes:
        if rows.shape[2] < 6 or rows.shape[1] < rows.shape[2]:
            raise foreign.complain(EXPECTS)
        raise foreign.wrong_class_count(rows.shape[2] - 5)
    if (rows[..., 2:4] < 0).any():
        raise foreign.complain(f"{EXPECTS}, with widths and heights in pixels, none negative,")
    activation = activation_of(rows[..., 4:])
    return Reading(
        decode=decoded_boxes(foreign.num_classes, activation=activation, with_objectness=True),
        take_apart=take_columns(name, foreign.num_classes, with_objectness=True),
    )
