"""The short ways that `Detector` takes every time: DecodeNMS made ready once, boxes back to the image."""

import numpy as np
import pytest

from boxwright.core import kernels, letterbox
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.errors import InputError

ATTRIBUTES = DecodeNmsAttributes(box_coding="yolox", max_detections=7)
RNG = np.random.default_rng(5)
PRIORS = np.concatenate([RNG.random((20, 2)) * 60, np.full((20, 2), 8.0)], axis=1).astype(np.float32)
BOXES = RNG.normal(size=(2, 20, 4)).astype(np.float32)
LOGITS = RNG.normal(size=(2, 20, 3)).astype(np.float32)


def test_constant_priors_may_be_given_ahead() -> None:
    prepared = kernels.PreparedDecodeNms(ATTRIBUTES, PRIORS)
    for _ in range(2):
        ahead = prepared(BOXES, LOGITS, score_threshold=0.3, iou_threshold=0.5)
        given = kernels.decode_nms(
            BOXES, LOGITS, attributes=ATTRIBUTES, score_threshold=0.3, iou_threshold=0.5, priors=PRIORS
        )
        assert given.num_detections.min() > 0
        for one, other in zip(ahead, given, strict=True):
            np.testing.assert_array_equal(one, other)


def test_priors_of_the_call_come_before_those_given_ahead() -> None:
    prepared = kernels.PreparedDecodeNms(ATTRIBUTES, np.zeros_like(PRIORS))
    found = prepared(BOXES, LOGITS, score_threshold=0.3, iou_threshold=0.5, priors=PRIORS)
    expected = kernels.PreparedDecodeNms(ATTRIBUTES, PRIORS)(BOXES, LOGITS, score_threshold=0.3, iou_threshold=0.5)
    np.testing.assert_array_equal(found.boxes, expected.boxes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"class_logits": LOGITS[0]}, "class_logits"),
        ({"class_logits": np.float32(1)}, "class_logits"),
        ({"class_logits": LOGITS[:, :5]}, "box_regression"),
        ({"box_regression": BOXES[..., :3]}, "box_regression"),
        ({"box_regression": BOXES[0]}, "box_regression"),
        ({"priors": PRIORS[:5]}, "priors"),
        ({"objectness": LOGITS[..., 0]}, "objectness"),
        ({"objectness": LOGITS[:, :0, 0], "class_logits": LOGITS[:, :0], "box_regression": BOXES[:, :0]}, "objectness"),
        ({"score_threshold": 1.5}, "score_threshold"),
        ({"iou_threshold": float("nan")}, "iou_threshold"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, object], named: str) -> None:
    inputs = {"box_regression": BOXES, "class_logits": LOGITS, "score_threshold": 0.3, "iou_threshold": 0.5}
    inputs |= {"priors": PRIORS, **changes}
    with pytest.raises(InputError, match=named):
        kernels.PreparedDecodeNms(ATTRIBUTES)(**inputs)


@pytest.mark.parametrize("count", [0, 1, 33])
def test_boxes_to_image(count: int) -> None:
    boxes = (RNG.random((count, 4)) * 500 - 40).astype(np.float32)
    place = {"resized_hw": (312, 416), "offset_tl": (52, 0), "image_size_hw": (479, 641)}
    found = kernels.boxes_to_image(boxes, **place)
    np.testing.assert_allclose(found, letterbox.boxes_to_image(boxes, **place), atol=1e-4)
    assert found.dtype == np.float32
    assert found.shape == (count, 4)


def test_boxes_to_image_takes_views_and_other_dtypes() -> None:
    boxes = (RNG.random((8, 4)) * 400).astype(np.float32)
    place = {"resized_hw": (416, 416), "offset_tl": (0, 0), "image_size_hw": (832, 832)}
    expected = np.minimum(boxes * 2, 832)
    np.testing.assert_allclose(kernels.boxes_to_image(boxes[::-1], **place), expected[::-1], rtol=1e-6)
    np.testing.assert_allclose(kernels.boxes_to_image(boxes.astype(np.float64), **place), expected, rtol=1e-6)
