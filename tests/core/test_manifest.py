"""Manifest and its parts: round trips, and what a file of another time or hand gets."""

from __future__ import annotations

import json

import numpy as np
import pytest

from boxwright.core import decode_spec as specs
from boxwright.core.errors import InputError, ManifestError
from boxwright.core.manifest import SCHEMA_VERSION, CalibrationRecord, Manifest, VerificationRecord
from boxwright.core.preprocess import Preprocess

TWO_LEVELS = (specs.GridLevel(grid_hw=(4, 6), stride=8.0), specs.GridLevel(grid_hw=(2, 3), stride=16.0))
ANCHORS = (specs.AnchorLevel(grid_hw=(2, 3), stride_hw=(8.0, 8.0), cell_boxes_xyxy=((-4.0, -4.0, 4.0, 4.0),)),)
DECODE_SPECS = [
    specs.AnchorDeltas(num_classes=2, levels=ANCHORS, background_class=0, score_activation="softmax"),
    specs.Grid(num_classes=2, box_coding="yolov5", levels=TWO_LEVELS, nms=specs.NmsSpec(overlap="diou")),
    specs.Distances(num_classes=2, levels=TWO_LEVELS, score_combination="sqrt", clip_to_image=True),
    specs.Peaks(num_classes=2, levels=TWO_LEVELS[:1], max_detections=100),
    specs.Queries(num_classes=2, num_queries=7, scale_wh=(48.0, 32.0)),
    specs.Boxes(num_classes=2, box_format="cxcywh", score_activation="none", nms=specs.NmsSpec()),
]


def manifest(**changes: object) -> Manifest:
    options = {
        "family": "yolox",
        "variant": "yolox-nano",
        "class_names": ("Äpfel", "b"),
        "preprocess": Preprocess(size_hw=(32, 48)),
        "decode": DECODE_SPECS[1],
        "stage": "raw",
    }
    return Manifest(**{**options, **changes})


@pytest.mark.parametrize("decode", DECODE_SPECS, ids=lambda spec: spec.kind)
def test_round_trip_of_every_kind_of_head(decode: specs.DecodeSpec) -> None:
    original = manifest(decode=decode)
    assert Manifest.from_json(original.to_json()) == original


def test_round_trip_of_the_records() -> None:
    original = manifest(
        calibration=CalibrationRecord(
            method="percentile 99.99",
            data_sha256="ab",
            num_images=80,
            layers_in_float=("a",),
            layers_run_twice=("b", "c"),
            layers_run_three_times=("d",),
            int8_share={"openvino": 0.93},
            map_images_sha256="cd",
            latency_ms={"fp32": 1.5},
        ),
        verification=VerificationRecord(
            reference="torch",
            num_images=3,
            num_boxes=60,
            matched_fraction=1.0,
            worst_box_difference=0.01,
            worst_score_difference=1e-6,
            proven=True,
        ),
    )
    assert Manifest.from_json(original.to_json()) == original


def test_a_calibration_record_of_before_its_newer_fields() -> None:
    written = {"method": "mse", "data_sha256": "ab", "num_images": 80, "layers_in_float": [], "map_images": None}
    record = Manifest.from_json(edited(calibration=written)).calibration
    assert record == CalibrationRecord(method="mse", data_sha256="ab", num_images=80)
    assert record.int8_share is None and record.layers_run_twice == ()


def edited(**changes: object) -> str:
    return json.dumps({**json.loads(manifest().to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        (edited(schema_version=SCHEMA_VERSION + 1, novelty=1), "newer|older"),
        (edited(novelty=1), "'novelty'"),
        (edited(stage="half"), "stage"),
        (edited(class_names=["a"]), "class_names"),
        (edited(class_names="ab"), "class_names"),
        (edited(score_threshold=2.0), "score_threshold"),
        (edited(score_threshold=True), "score_threshold"),
        (edited(decode={"kind": "guess"}), "kind"),
        (edited(decode=None), "kind"),
        (edited(preprocess={"size_hw": [32, 48], "resize": "crop"}), "resize"),
        (edited(preprocess={"size_hw": [32]}), "size_hw"),
        (json.dumps({"family": "yolox"}), "variant"),
    ],
)
def test_a_manifest_that_cannot_be_understood_is_named_in_one_line(text: str, named: str) -> None:
    with pytest.raises(ManifestError, match=named) as caught:
        Manifest.from_json(text, source="m.onnx")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("m.onnx")


@pytest.mark.parametrize("decode", DECODE_SPECS, ids=lambda spec: spec.kind)
def test_priors_fit_the_level_sizes(decode: specs.DecodeSpec) -> None:
    priors = decode.priors()
    sizes = decode.attributes().level_sizes
    if priors is not None and sizes:
        assert priors.shape == (sum(sizes), 4)
        assert priors.dtype == np.float32


def test_anchor_priors_are_ordered_by_row_column_and_anchor() -> None:
    level = specs.AnchorLevel(
        grid_hw=(2, 3), stride_hw=(10.0, 8.0), cell_boxes_xyxy=((-1, -2, 1, 2), (-3, -3, 3, 3)), offset=0.5
    )
    priors = level.priors()
    assert priors.shape == (12, 4)
    assert priors[0].tolist() == [3, 3, 5, 7]  # centre (4, 5)
    assert priors[1].tolist() == [1, 2, 7, 8]
    assert priors[2].tolist() == [11, 3, 13, 7]  # next column
    assert priors[6].tolist() == [3, 13, 5, 17]  # next row


def test_grid_priors_hold_the_cell_and_the_anchor() -> None:
    level = specs.GridLevel(grid_hw=(2, 2), stride=8.0, anchors_wh=((10.0, 20.0), (30.0, 40.0)), offset=0.5)
    priors = level.priors()
    assert priors[1].tolist() == [4, 4, 30, 40]
    assert priors[2].tolist() == [12, 4, 10, 20]
    assert priors[4].tolist() == [4, 12, 10, 20]


def test_grid_priors_may_lie_otherwise_than_by_the_stride() -> None:
    level = specs.GridLevel(grid_hw=(2, 2), stride=8.0, step_hw=(7.0, 6.0))
    assert level.priors().tolist() == [[0, 0, 8, 8], [6, 0, 8, 8], [0, 7, 8, 8], [6, 7, 8, 8]]
    original = manifest(decode=specs.Distances(num_classes=2, levels=(level,)))
    assert Manifest.from_json(original.to_json()) == original


def test_query_priors_scale_to_pixels() -> None:
    priors = DECODE_SPECS[4].priors()
    assert priors is not None and priors.shape == (7, 4)
    assert priors[3].tolist() == [0, 0, 48, 32]


def test_background_adds_a_logit() -> None:
    assert DECODE_SPECS[0].num_logits == 3
    assert DECODE_SPECS[1].num_logits == 2
    assert DECODE_SPECS[2].has_objectness and not DECODE_SPECS[0].has_objectness


def test_without_nms_the_top_k_is_what_comes_out() -> None:
    attributes = DECODE_SPECS[3].attributes()
    assert not attributes.with_nms
    assert attributes.pre_nms_top_k == attributes.max_detections == 100


def test_a_spec_refuses_what_the_operator_refuses() -> None:
    with pytest.raises(InputError, match="max_detections"):
        specs.Peaks(num_classes=2, levels=TWO_LEVELS, max_detections=0)
    with pytest.raises(InputError, match="num_classes"):
        specs.Peaks(num_classes=0, levels=TWO_LEVELS)
