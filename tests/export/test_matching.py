"""Pairing the boxes of an artifact with those of its source."""

from __future__ import annotations

import numpy as np

from boxwright.export.verify import match
from generated_detections import detections_of


def test_a_box_that_was_clipped_to_nothing_has_its_partner() -> None:
    """What lay in the letterbox's padding has no area, and overlaps nothing, itself included."""
    in_padding, real = [0.0, 0.0, 40.0, 0.0], [10.0, 10.0, 50.0, 60.0]
    reference = detections_of([real, in_padding, in_padding], [0.9, 0.8, 0.7], [0, 0, 1])
    artifact = detections_of([real, in_padding], [0.9, 0.8], [0, 0])
    assert np.array_equal(np.sort(match(reference, artifact), axis=0), [[0, 0], [1, 1]])
    elsewhere = detections_of([real, [20.0, 0.0, 60.0, 0.0]], [0.9, 0.8], [0, 0])
    assert match(reference, elsewhere).tolist() == [[0, 0]]
