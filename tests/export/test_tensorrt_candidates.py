"""How many candidates go to NMS where TensorRT sorts them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.decode_spec import AnchorDeltas, AnchorLevel, NmsSpec
from boxwright.export.decode_nms.function import sorts_in_float
from boxwright.export.tensorrt_candidates import candidates_that_fit
from boxwright.export.tensorrt_limits import limits_of

# Anchors of a pyramid at 640x640, nine at a place, as RetinaNet has them.
RETINANET_GRIDS = (80, 40, 20, 10, 5)


def pyramid(grids: tuple[int, ...], num_anchors: int = 9, multi_label: bool = False, **nms: Any) -> AnchorDeltas:
    boxes = tuple((-4.0, -4.0, 4.0 + index, 4.0) for index in range(num_anchors))
    levels = tuple(
        AnchorLevel(grid_hw=(side, side), stride_hw=(640 / side, 640 / side), cell_boxes_xyxy=boxes) for side in grids
    )
    return AnchorDeltas(num_classes=80, levels=levels, multi_label=multi_label, nms=NmsSpec(**nms))


@pytest.mark.parametrize(
    ("decode", "wanted"),
    [
        (pyramid(RETINANET_GRIDS, pre_nms_top_k=1000, top_k_scope="level"), 768),  # 4,125 of five levels
        (pyramid(RETINANET_GRIDS, pre_nms_top_k=700, top_k_scope="level"), None),
        (pyramid(RETINANET_GRIDS, pre_nms_top_k=5000), 3840),  # EfficientDet
        (pyramid(RETINANET_GRIDS, pre_nms_top_k=0), 3840),
        (pyramid((20,), pre_nms_top_k=3700), None),
        (pyramid(RETINANET_GRIDS, 1, pre_nms_top_k=1000, top_k_scope="level", multi_label=True), 768),  # FCOS
        (pyramid(RETINANET_GRIDS, pre_nms_top_k=400, top_k_scope="class"), None),  # SSD: sorted class by class
        (pyramid(RETINANET_GRIDS, pre_nms_top_k=400, top_k_scope="class", class_agnostic=True), 48),
        (AnchorDeltas(num_classes=80, nms=NmsSpec(pre_nms_top_k=0, top_k_scope="class")), None),  # second stages
        (AnchorDeltas(num_classes=80, levels=pyramid(RETINANET_GRIDS).levels, nms=None), None),
    ],
)
@pytest.mark.parametrize("version", ["8.5.3", "8.6.1", "10.3.0", "11.1.0"])
def test_what_tensorrt_can_sort(decode: AnchorDeltas, wanted: int | None, version: str) -> None:
    assert candidates_that_fit(decode, limits_of(version)) == wanted


def test_the_oldest_sorts_no_integers() -> None:
    """2,525 of 5 times 1,000 candidates can be sorted, but the body settles ties by whole numbers then."""
    decode = pyramid(RETINANET_GRIDS, num_anchors=1, pre_nms_top_k=1000, top_k_scope="level")
    assert candidates_that_fit(decode, limits_of("8.5.3")) == 768
    assert candidates_that_fit(decode, limits_of("8.6.1")) is None


def test_classes_that_are_sorted_one_by_one_are_counted_one_by_one() -> None:
    """The second stage of an R-CNN: a thousand regions of 81 classes, which TensorRT 8.5 must sort in float32."""
    attributes = DecodeNmsAttributes(
        box_coding="anchor_delta", score_activation="softmax", background_class=0, multi_label=True, pre_nms_top_k=0,
        top_k_scope="class", max_detections=100,
    )  # fmt: skip
    assert sorts_in_float(attributes, 1000, 81)
    assert not sorts_in_float(attributes, 5000, 81)
    assert not sorts_in_float(replace(attributes, class_agnostic=True), 1000, 81)
