"""The kept cases of DecodeNMS cover what they should: every value of every rule beside every value of every other."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from boxwright.core.decode_nms_attributes import STRIDE_CODINGS
from decode_nms_cases import Case

CASES = [Case.from_json(line) for line in (Path(__file__).parent / "decode_nms_corpus.jsonl").read_text().splitlines()]


def traits(case: Case) -> dict[str, Any]:
    """What matters of a case, each trait with few values."""
    attributes = case.attributes
    has_objectness = attributes.score_combination != "none"
    return {
        "box_coding": attributes.box_coding,
        "has_box_weights": attributes.box_weights != (1.0, 1.0, 1.0, 1.0),
        "has_delta_clip": attributes.delta_clip > 0,
        "has_levels": len(attributes.level_sizes) > 1,
        "has_scale_xy": len(attributes.level_scale_xy) > 0,
        "score_activation": attributes.score_activation,
        "objectness": attributes.objectness_activation if has_objectness else "absent",
        "score_combination": attributes.score_combination,
        "has_background": attributes.background_class >= 0,
        "class_specific_boxes": attributes.class_specific_boxes,
        "multi_label": attributes.multi_label,
        "with_nms": attributes.with_nms,
        "class_agnostic": attributes.class_agnostic,
        "overlap": attributes.overlap,
        "top_k": attributes.top_k_scope if attributes.pre_nms_top_k > 0 else "absent",
        "clip_to_image": attributes.clip_to_image,
        "has_min_size": attributes.min_size > 0,
        "max_detections": attributes.max_detections,
        "score_threshold": case.score_threshold,
        "iou_threshold": case.iou_threshold,
        "has_ties": case.logit_step > 0,
        "has_odd_numbers": case.special_fraction > 0,
        "prior_form": case.prior_form,
        "is_slice": case.sliced,
        "batch_size": case.batch_size,
        "num_anchors": min(
            size for size in (0, 40, 1000, 25_200) if case.num_anchors <= size
        ),  # the end of the range that it lies in
        "num_classes": min(size for size in (1, 5, 99, 1000) if case.num_classes <= size),
    }


def is_possible(pair: dict[str, Any]) -> bool:
    """Whether the rules allow two traits beside each other."""
    takes_numbers_as_they_are = pair.get("box_coding") in ("xyxy", "cxcywh", None)
    if pair.get("prior_form") == "none" and (not takes_numbers_as_they_are or pair.get("has_scale_xy")):
        return False
    if pair.get("has_scale_xy") and pair.get("box_coding", "yolov5") not in STRIDE_CODINGS:
        return False
    if "objectness" in pair and "score_combination" in pair:
        return (pair["objectness"] == "absent") == (pair["score_combination"] == "none")
    return True


TRAITS = [traits(case) for case in CASES]


@pytest.mark.parametrize("first", list(TRAITS[0]))
def test_every_pair_of_traits_is_there(first: str) -> None:
    values = {name: {each[name] for each in TRAITS} for name in TRAITS[0]}
    missing = []
    for second in values:
        if second == first:
            continue
        present = {(each[first], each[second]) for each in TRAITS}
        for a, b in itertools.product(values[first], values[second]):
            if (a, b) not in present and is_possible({first: a, second: b}):
                missing.append(f"{first} {a} with {second} {b}")
    assert missing == []


@pytest.mark.parametrize(
    ("names", "num_wanted"),
    [
        (("box_coding", "score_activation", "score_combination"), 9 * 3 * 3),
        (("box_coding", "multi_label", "class_agnostic", "with_nms"), 9 * 2 * 2 * 2),
        (("score_activation", "objectness", "has_background", "multi_label"), 3 * 3 * 2 * 2),
        (("top_k", "multi_label", "class_agnostic", "overlap", "with_nms"), 4 * 2 * 2 * 2 * 2),
        (("has_ties", "multi_label", "class_agnostic", "overlap"), 2 * 2 * 2 * 2),
    ],
)
def test_rules_that_work_together_are_there_in_every_combination(names: tuple[str, ...], num_wanted: int) -> None:
    assert len({tuple(each[name] for name in names) for each in TRAITS}) == num_wanted


def test_sizes_reach_their_ends() -> None:
    assert len(CASES) > 2400
    assert len({case.to_json() for case in CASES}) == len(CASES)
    assert {0, 25_200} <= {case.num_anchors for case in CASES}
    assert {1, 1000} <= {case.num_classes for case in CASES}
    assert {case.batch_size for case in CASES} == set(range(1, 9))
    assert max(case.num_logits for case in CASES) == 20_000_000


def test_most_cases_have_something_to_decide() -> None:
    """Corpora found by chance are easily full of thresholds that nothing passes."""
    sample = CASES[::12]
    counts = Counter(bool(_num_detections(case)) for case in sample)
    assert counts[True] > 0.5 * len(sample)


def _num_detections(case: Case) -> int:
    from boxwright.core.decode import decode_nms

    if case.num_logits > 200_000:
        return 1
    return int(decode_nms(**case.inputs()).num_detections.sum())
