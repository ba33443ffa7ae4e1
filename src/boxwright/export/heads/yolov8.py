"""YOLOv8 and its kin: (B, 4 + C, N), centre, width and height in pixels, classes after the sigmoid."""

from __future__ import annotations

from boxwright.export.foreign import ForeignFile
from boxwright.export.heads.operations import Reading, activation_of, decoded_boxes, take_columns

EXPECTS = "one output (B, 4 + C, N), or the same as (B, N, 4 + C)"


def read(foreign: ForeignFile) -> Reading:
    """The one output, anchors last as usual, or first as some converters leave them."""
    joined = {name: array for name, array in foreign.outputs.items() if array.ndim == 3}
    if len(joined) != 1 or len(foreign.outputs) != 1:
        raise foreign.complain(EXPECTS)
    name, rows = next(iter(joined.items()))
    # There are more anchors than classes, or else the labels tell.
    anchors_last = rows.shape[1] == 4 + foreign.num_classes or rows.shape[1] < rows.shape[2]
    if rows.shape[2] == 4 + foreign.num_classes and rows.shape[1] != 4 + foreign.num_classes:
        anchors_last = False
    width = rows.shape[1] if anchors_last else rows.shape[2]
    if width != 4 + foreign.num_classes:
        if width < 5:
            raise foreign.complain(EXPECTS)
        raise foreign.wrong_class_count(width - 4)
    if ((rows[:, 2:4] if anchors_last else rows[..., 2:4]) < 0).any():
        raise foreign.complain(f"{EXPECTS}, with widths and heights in pixels, none negative,")
    classes = rows[:, 4:] if anchors_last else rows[..., 4:]
    activation = activation_of(classes)
    return Reading(
        decode=decoded_boxes(foreign.num_classes, activation=activation, with_objectness=False),
        take_apart=take_columns(name, foreign.num_classes, with_objectness=False, swapped=anchors_last),
    )
