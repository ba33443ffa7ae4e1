"""YOLOX: (B, N, 5 + C), boxes relative to the grid or decoded, objectness and classes after the sigmoid."""

from __future__ import annotations

import numpy as np

from boxwright.core.decode_spec import Grid, GridLevel, NmsSpec
from boxwright.export.foreign import ForeignFile
from boxwright.export.heads.operations import Reading, activation_of, decoded_boxes, take_columns

STRIDES = (8, 16, 32)
EXPECTS = "one output (B, N, 5 + C) with N the cells of strides 8, 16 and 32"


def read(foreign: ForeignFile) -> Reading:
    """The authors' export, with or without their option to decode boxes in the graph."""
    cells = [(foreign.size_hw[0] // stride, foreign.size_hw[1] // stride) for stride in STRIDES]
    num_anchors = sum(rows * columns for rows, columns in cells)
    candidates = {name: array for name, array in foreign.outputs.items() if array.shape[1:2] == (num_anchors,)}
    if len(candidates) != 1 or next(iter(candidates.values())).ndim != 3:
        raise foreign.complain(EXPECTS)
    name, rows = next(iter(candidates.items()))
    if rows.shape[2] != 5 + foreign.num_classes:
        raise foreign.wrong_class_count(rows.shape[2] - 5)
    activation = activation_of(rows[..., 4:])
    take_apart = take_columns(name, foreign.num_classes, with_objectness=True)
    # Undecoded centres are offsets of a few cells; decoded ones spread over the whole input.
    if np.ptp(rows[0, :, 0]) > foreign.size_hw[1] / 2:
        return Reading(
            decode=decoded_boxes(foreign.num_classes, activation=activation, with_objectness=True),
            take_apart=take_apart,
        )
    levels = tuple(GridLevel(grid_hw=hw, stride=float(stride)) for hw, stride in zip(cells, STRIDES, strict=True))
    decode = Grid(
        num_classes=foreign.num_classes,
        box_coding="yolox",
        levels=levels,
        score_activation=activation,
        objectness_activation=activation,
        score_combination="multiply",
        nms=NmsSpec(),
    )
    return Reading(decode=decode, take_apart=take_apart)
