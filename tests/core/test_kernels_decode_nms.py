"""The compiled DecodeNMS against the numpy reference."""

from __future__ import annotations

import dataclasses
import platform
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from agreement import assert_agrees
from boxwright.core import kernels
from boxwright.core.decode import DecodeNmsOutput
from boxwright.core.decode import decode_nms as reference
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.errors import InputError
from decode_nms_cases import Case, cases
from tolerances import DECISION

INSTRUCTION_SETS = kernels.instruction_sets()
pytestmark = pytest.mark.skipif(not INSTRUCTION_SETS, reason="the compiled kernels are not built")

CORPUS = (Path(__file__).parent / "decode_nms_corpus.jsonl").read_text().splitlines()
NUM_PARTS = 12


def run_everywhere(inputs: dict[str, Any]) -> DecodeNmsOutput:
    """The result, which must be the same on every instruction set."""
    results = [kernels.decode_nms(**inputs, instruction_set=name) for name in INSTRUCTION_SETS]
    for name, result in zip(INSTRUCTION_SETS, results, strict=True):
        assert_equal(result, results[0], f"{name} differs from {INSTRUCTION_SETS[0]}")
    return results[0]


def assert_equal(actual: DecodeNmsOutput, expected: DecodeNmsOutput, message: str = "") -> None:
    for field, a, b in zip(DecodeNmsOutput._fields, actual, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=f"{field}: {message}")


def is_large(case: Case) -> bool:
    return case.num_logits > 2_000_000


LARGE = [pytest.param(line, id=f"line {i}") for i, line in enumerate(CORPUS) if is_large(Case.from_json(line))]


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_the_corpus(part: int) -> None:
    for line in CORPUS[part::NUM_PARTS]:
        case = Case.from_json(line)
        if is_large(case):
            continue
        inputs = case.inputs()
        try:
            assert_agrees(run_everywhere(inputs), **inputs)
        except AssertionError as error:
            raise AssertionError(f"{error}\nfor the case {line}") from error


@pytest.mark.parametrize("line", LARGE)
def test_the_largest_of_the_corpus(line: str) -> None:
    """Twenty million class logits take the reference seconds each, so that they are tests of their own."""
    inputs = Case.from_json(line).inputs()
    assert_agrees(run_everywhere(inputs), **inputs)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(cases(max_pairs=8000))
def test_fresh_cases(case: Case) -> None:
    inputs = case.inputs()
    assert_agrees(run_everywhere(inputs), **inputs)


EXACT_CODINGS = ["yolov1", "distances", "xyxy", "cxcywh"]


@pytest.mark.parametrize("coding", EXACT_CODINGS)
@pytest.mark.parametrize("combination", ["none", "multiply", "sqrt"])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("special_fraction", [0.0, 0.1])
def test_equality_to_the_bit_without_exponentials(
    coding: str, combination: str, multi_label: bool, special_fraction: float
) -> None:
    """Ties included: where both sides do the same roundings, rank and suppression are the same."""
    for seed, (logit_step, class_agnostic, overlap) in enumerate([(0.0, False, "iou"), (0.5, True, "diou")]):
        attributes = DecodeNmsAttributes(
            box_coding=coding,  # type: ignore[arg-type]
            level_sizes=(200, 97),
            level_strides=(8.0, 16.0),
            score_activation="none",
            objectness_activation="none",
            score_combination=combination,  # type: ignore[arg-type]
            multi_label=multi_label,
            class_agnostic=class_agnostic,
            overlap=overlap,  # type: ignore[arg-type]
            clip_to_image=True,
            min_size=2.0,
            pre_nms_top_k=150,
            max_detections=60,
        )
        case = Case(
            seed=seed,
            batch_size=2,
            num_anchors=297,
            num_classes=7,
            attributes=attributes,
            score_threshold=0.05,
            iou_threshold=0.3,
            logit_mean=-1.0,
            logit_step=logit_step,
            box_spread=0.3,
            special_fraction=special_fraction,
        )
        inputs = case.inputs()
        expected = reference(**inputs)
        # With numbers that are none, a batch item may have an image of no size.
        assert expected.num_detections.max() > 20
        assert_equal(run_everywhere(inputs), expected)


def plain_inputs(scores: np.ndarray, boxes: np.ndarray, **changes: Any) -> dict[str, Any]:
    """Inputs of boxes and scores as they are."""
    attributes = DecodeNmsAttributes(box_coding="xyxy", score_activation="none", max_detections=10)
    return {
        "box_regression": np.asarray(boxes, dtype=np.float32),
        "class_logits": np.asarray(scores, dtype=np.float32),
        "attributes": dataclasses.replace(attributes, **changes),
        "score_threshold": 0.1,
        "iou_threshold": 0.5,
    }


HUGE = 3e38
FAR_APART = [[0, 0, 10, 10], [100, 0, 110, 10], [200, 0, 210, 10], [300, 0, 310, 10]]


@pytest.mark.parametrize(
    ("scores", "boxes", "changes", "expected"),
    [
        # Equal scores rank by class, then by anchor; the better class of an anchor is the lower at a tie.
        ([[0.5, 0.9], [0.9, 0.5], [0.9, 0.9], [0.5, 0.5]], FAR_APART, {}, [(0, 1), (0, 2), (1, 0), (0, 3)]),
        # NaN and infinite scores are none; a finite class of the same anchor still is.
        ([[np.nan, 0.3], [np.inf, np.inf], [-np.inf, 0.4], [0.2, np.nan]], FAR_APART, {}, [(1, 2), (1, 0), (0, 3)]),
        # A score equal to the threshold is below it.
        ([[0.1, 0.0], [0.2, 0.0], [0.0, 0.1], [0.0, 0.0]], FAR_APART, {}, [(0, 1)]),
        # Boxes that are no numbers take a place of the top-k and vanish.
        (
            [[0.9, 0], [0.8, 0], [0.7, 0], [0.6, 0]],
            [[0, 0, np.nan, 10], *FAR_APART[1:]],
            {"pre_nms_top_k": 2},
            [(0, 1)],
        ),
        # An overlap equal to the threshold does not suppress; a touch more does.
        (
            [[0.9, 0], [0.8, 0], [0.7, 0], [0.6, 0]],
            [[0, 0, 30, 10], [0, 0, 15, 10], [0, 0, 30, 5.01], [0, 0, 15.01, 10]],
            {},
            [(0, 0), (0, 1)],
        ),
        # Areas that overflow make overlaps of NaN, which suppress nothing; extents below zero have no area.
        (
            [[0.9, 0], [0.8, 0], [0.7, 0], [0.6, 0]],
            [[-HUGE, -HUGE, HUGE, HUGE], [-HUGE, -HUGE, HUGE, HUGE], [9, 9, 5, 5], [9, 9, 5, 5]],
            {},
            [(0, 0), (0, 1), (0, 2), (0, 3)],
        ),
        # The background is no class, and class ids are counted without it.
        (
            [[0.9, 0.2], [0.9, 0.3], [0.9, 0.05], [0.9, 0.4]],
            FAR_APART,
            {"background_class": 0},
            [(0, 3), (0, 1), (0, 0)],
        ),
    ],
)
def test_edges(scores: Any, boxes: Any, changes: dict[str, Any], expected: list[tuple[int, int]]) -> None:
    """Detections as pairs of class id and anchor, the anchor told by its box."""
    inputs = plain_inputs(np.array([scores]), np.array([boxes]), **changes)
    result = run_everywhere(inputs)
    count = int(result.num_detections[0, 0])
    found = []
    for box, class_id in zip(result.boxes[0, :count], result.class_ids[0, :count], strict=True):
        anchors = [i for i, candidate in enumerate(boxes) if np.array_equal(np.float32(candidate), box)]
        taken = {anchor for _, anchor in found}
        found.append((int(class_id), next(anchor for anchor in anchors if anchor not in taken)))
    assert found == expected
    assert_equal(result, reference(**inputs))


@pytest.mark.parametrize("shape", [(0, 5, 3), (1, 0, 3), (3, 0, 1), (2, 1, 1), (1, 3, 1000)])
@pytest.mark.parametrize("class_specific_boxes", [False, True])
@pytest.mark.parametrize("multi_label", [False, True])
def test_odd_shapes(shape: tuple[int, int, int], class_specific_boxes: bool, multi_label: bool) -> None:
    random = np.random.default_rng(0)
    boxes = random.uniform(0, 50, (shape[0], shape[1], 4 * (shape[2] if class_specific_boxes else 1)))
    inputs = plain_inputs(
        random.random(shape), boxes, class_specific_boxes=class_specific_boxes, multi_label=multi_label
    )
    assert_equal(run_everywhere(inputs), reference(**inputs))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
@pytest.mark.parametrize("combination", ["none", "multiply", "sqrt"])
def test_numbers_that_are_none_leave_nothing(value: float, activation: str, combination: str) -> None:
    attributes = DecodeNmsAttributes(
        box_coding="yolox",
        score_activation=activation,  # type: ignore[arg-type]
        score_combination=combination,  # type: ignore[arg-type]
        multi_label=True,
    )
    filled = {
        "box_regression": np.full((2, 50, 4), value, np.float32),
        "class_logits": np.full((2, 50, 9), value, np.float32),
        "objectness": None if combination == "none" else np.full((2, 50), value, np.float32),
        "priors": np.full((50, 4), value, np.float32),
    }
    for name, array in filled.items():
        if array is None:
            continue
        inputs = {key: other if other is None else np.full_like(other, 0.5) for key, other in filled.items()}
        inputs[name] = array
        result = run_everywhere({**inputs, "attributes": attributes, "score_threshold": 0.01, "iou_threshold": 0.5})
        assert not result.num_detections.any(), name
        assert not result.scores.any()
        assert (result.class_ids == -1).all()


@pytest.mark.parametrize("activation", ["none", "sigmoid", "softmax"])
@pytest.mark.parametrize("combination", ["none", "multiply"])
@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("density", [0.01, 0.5])
def test_any_layout_gives_the_same(activation: str, combination: str, multi_label: bool, density: float) -> None:
    """Slices of a wide head, one row a class, every second anchor, backwards, double precision: nothing changes."""
    random = np.random.default_rng(3)
    shape = (2, 1500, 11)
    logits = random.normal(-5, 2, shape).astype(np.float32)
    if activation == "none":
        logits = 1 / (1 + np.exp(-logits))
    objectness = np.where(random.random(shape[:2]) < density, 3, -9).astype(np.float32)
    boxes, priors = random.normal(0, 0.3, (2, 1500, 4)).astype(np.float32), np.zeros((1500, 4), np.float32)
    priors[:] = np.stack([np.arange(1500) % 40 * 8, np.arange(1500) // 40 * 8, *np.full((2, 1500), 30)], axis=1)
    attributes = DecodeNmsAttributes(
        box_coding="yolox",
        score_activation=activation,  # type: ignore[arg-type]
        score_combination=combination,  # type: ignore[arg-type]
        multi_label=multi_label,
        background_class=4,
    )

    def run(transform: Any) -> DecodeNmsOutput:
        return run_everywhere(
            {
                "box_regression": transform(boxes),
                "class_logits": transform(logits),
                "objectness": transform(objectness) if combination != "none" else None,
                "priors": transform(priors),
                "attributes": attributes,
                "score_threshold": 0.02,
                "iou_threshold": 0.5,
            }
        )

    expected = run(np.ascontiguousarray)
    assert expected.num_detections.min() > 5
    layouts = {
        "column by column": lambda array: np.asfortranarray(array),
        "a row for each class": lambda array: np.ascontiguousarray(array.swapaxes(-1, -2)).swapaxes(-1, -2),
        "a slice": lambda array: np.pad(array, [(0, 0)] * (array.ndim - 1) + [(3, 2)])[..., 3:-2],
        "every second": lambda array: np.repeat(np.repeat(array, 2, axis=-1), 2, axis=0)[::2, ..., ::2],
        "backwards": lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
        "double": lambda array: array.astype(np.float64),
        "read-only": _read_only,
    }
    for name, transform in layouts.items():
        assert_equal(run(transform), expected, name)


def _read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def test_inputs_are_not_copied() -> None:
    wide = np.zeros((2, 100, 85), np.float32)
    for view in (wide[..., 5:], wide[..., 4], wide.swapaxes(1, 2), wide[::-1]):
        assert kernels._as_float32(view) is view


@pytest.mark.parametrize("sliced", [False, True])
def test_a_call_takes_no_memory_for_its_inputs(sliced: bool) -> None:
    head = np.zeros((2, 8400, 85), np.float32)  # 5.7 MB
    logits = head[..., 5:] if sliced else np.zeros((2, 8400, 80), np.float32)
    inputs = plain_inputs(np.zeros((1, 1, 1)), np.zeros((1, 1, 4)))
    inputs.update(class_logits=logits, box_regression=head[..., :4])
    kernels.decode_nms(**inputs)
    tracemalloc.start()
    try:
        kernels.decode_nms(**inputs)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50_000


@pytest.mark.parametrize("num_threads", [2, 3, 64])
def test_threads_change_nothing(num_threads: int) -> None:
    case = Case.from_json(next(line for line in CORPUS if Case.from_json(line).batch_size == 8))
    inputs = case.inputs()
    assert_equal(kernels.decode_nms(**inputs, num_threads=num_threads), kernels.decode_nms(**inputs))


def test_other_threads_run_meanwhile() -> None:
    """The interpreter's lock is released: a second thread goes on while the kernel works."""
    random = np.random.default_rng(0)
    inputs = plain_inputs(random.random((1, 25_200, 80)), random.random((1, 25_200, 4)), multi_label=True)
    inputs["class_logits"] = np.repeat(inputs["class_logits"], 12, axis=0)
    inputs["box_regression"] = np.repeat(inputs["box_regression"], 12, axis=0)
    # A busy machine may leave the second thread no time in one call or other; a lock that is held never does.
    assert any(_runs_during_a_call(inputs) for _ in range(20)), "nothing ever ran during a call of the kernel"


def _runs_during_a_call(inputs: dict[str, Any]) -> bool:
    """Whether this thread ran in the middle half of a call that another thread makes."""
    spans: list[float] = []

    def work() -> None:
        spans.append(time.perf_counter())
        kernels.decode_nms(**inputs)
        spans.append(time.perf_counter())

    thread = threading.Thread(target=work)
    thread.start()
    ticks = []
    while thread.is_alive():
        time.sleep(0.0005)
        ticks.append(time.perf_counter())
    thread.join()
    begin, end = spans
    quarter = 0.25 * (end - begin)
    return any(begin + quarter < tick < end - quarter for tick in ticks)


BAD_INPUTS = [
    ({"class_logits": np.zeros((5, 3), np.float32)}, "class_logits"),
    ({"class_logits": np.zeros((1, 5, 0), np.float32)}, "class_logits"),
    ({"box_regression": np.zeros((1, 5, 12), np.float32)}, "box_regression"),
    ({"box_regression": np.zeros((1, 4, 4), np.float32)}, "box_regression"),
    ({"objectness": np.zeros((1, 5), np.float32)}, "objectness"),
    ({"priors": np.zeros((4, 4), np.float32)}, "priors"),
    ({"priors": np.zeros((2, 5, 4), np.float32)}, "priors"),
    ({"score_threshold": -0.1}, "score_threshold"),
    ({"score_threshold": float("nan")}, "score_threshold"),
    ({"iou_threshold": 1.5}, "iou_threshold"),
]


@pytest.mark.parametrize(("changes", "name"), BAD_INPUTS)
def test_bad_inputs(changes: dict[str, Any], name: str) -> None:
    inputs = {**plain_inputs(np.zeros((1, 5, 3)), np.zeros((1, 5, 4))), **changes}
    with pytest.raises(InputError, match=name) as from_kernel:
        kernels.decode_nms(**inputs)
    with pytest.raises(InputError) as from_reference:
        reference(**inputs)
    assert str(from_kernel.value) == str(from_reference.value)


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"score_combination": "multiply"}, "objectness"),
        ({"box_coding": "yolox"}, "priors"),
        ({"clip_to_image": True}, "image_size_hw"),
        ({"background_class": 3}, "background_class"),
        ({"top_k_scope": "level", "level_sizes": (2, 2)}, "level_sizes"),
        ({"class_specific_boxes": True}, "box_regression"),
    ],
)
def test_attributes_that_do_not_fit_the_inputs(changes: dict[str, Any], name: str) -> None:
    inputs = plain_inputs(np.zeros((1, 5, 3)), np.zeros((1, 5, 4)), **changes)
    with pytest.raises(InputError, match=name):
        kernels.decode_nms(**inputs)
    with pytest.raises(ValueError, match=rf"{name}: expected .*, got .*; ") as error:
        call_native(**inputs)
    assert "\n" not in str(error.value)


NATIVE_ATTRIBUTES = [
    ("box_coding", "yolov9"),
    ("box_weights", (1.0, 1.0, 0.0, 1.0)),
    ("box_weights", (1.0, 1.0, float("nan"), 1.0)),
    ("delta_clip", -1.0),
    ("level_sizes", (3, -1)),
    ("level_sizes", (2**62, 2**62)),
    ("score_activation", "tanh"),
    ("objectness_activation", "softmax"),
    ("score_combination", "sum"),
    ("background_class", -2),
    ("overlap", "giou"),
    ("pre_nms_top_k", -1),
    ("top_k_scope", "batch"),
    ("min_size", float("nan")),
    ("max_detections", 0),
    ("max_detections", 2**31),
    ("level_scale_xy", (1.0,)),
]


@pytest.mark.parametrize(("name", "value"), NATIVE_ATTRIBUTES)
def test_the_compiled_side_checks_attributes_by_itself(name: str, value: object) -> None:
    """The engines' plugins have no Python to do it."""
    from boxwright.core import _native

    fields = {**vars(DecodeNmsAttributes(box_coding="xyxy")), name: value}
    with pytest.raises(ValueError, match=rf"DecodeNMS attribute {name}: expected .*, got .*; "):
        _native.DecodeNmsAttributes(**fields)


@pytest.mark.parametrize(("changes", "name"), BAD_INPUTS)
def test_the_compiled_side_checks_inputs_by_itself(changes: dict[str, Any], name: str) -> None:
    inputs = {**plain_inputs(np.zeros((1, 5, 3)), np.zeros((1, 5, 4))), **changes}
    if inputs["class_logits"].ndim != 3:
        with pytest.raises(TypeError):
            call_native(**inputs)
        return
    with pytest.raises(ValueError, match=rf"{name}: expected .*, got .*; "):
        call_native(**inputs)


def call_native(
    *,
    attributes: DecodeNmsAttributes,
    box_regression: np.ndarray,
    class_logits: np.ndarray,
    score_threshold: float,
    iou_threshold: float,
    objectness: np.ndarray | None = None,
    priors: np.ndarray | None = None,
    image_size_hw: np.ndarray | None = None,
) -> None:
    """The extension's function without Python's checks."""
    from boxwright.core import _native

    batch_size, top = len(class_logits), attributes.max_detections
    _native.decode_nms(
        kernels._native_attributes(attributes),
        box_regression,
        class_logits,
        objectness,
        priors if priors is None or priors.ndim == 3 else priors[None],
        image_size_hw,
        score_threshold,
        iou_threshold,
        np.empty((batch_size, 1), np.int32),
        np.empty((batch_size, top, 4), np.float32),
        np.empty((batch_size, top), np.float32),
        np.empty((batch_size, top), np.int32),
        1,
        None,
    )


def test_what_the_processor_has_is_used() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpuinfo.is_file():
        pytest.skip("no list of an x86-64 processor's instructions here")
    flags = set(next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split())
    has_avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags
    assert [*["avx512"] * has_avx512, *["avx2"] * ("avx2" in flags), "plain"] == INSTRUCTION_SETS


def test_an_instruction_set_that_is_not_there() -> None:
    inputs = plain_inputs(np.zeros((1, 5, 3)), np.zeros((1, 5, 4)))
    with pytest.raises(ValueError, match=r"instruction set: expected one of .*plain, got mmx; choose another"):
        kernels.decode_nms(**inputs, instruction_set="mmx")


def test_a_trained_detectors_heads(shared_dir: Path) -> None:
    """YOLOX-nano's own heads, at both thresholds that people use."""
    torch = pytest.importorskip("torch")
    from boxwright.core.images import read_image
    from boxwright.models import load_model

    weights = shared_dir / "weights" / "yolox_nano_coco.pth"
    loaded = load_model(weights, model="yolox-nano", class_names="coco", preprocess="yolox-legacy")
    spec = loaded.module.decode_spec((416, 416))
    paths = sorted((shared_dir / "data" / "coco-tiny" / "val2017").glob("*.jpg"))[:8]
    images = np.stack([loaded.preprocess.apply(read_image(path))[0] for path in paths])
    with torch.inference_mode():
        heads = {name: tensor.numpy() for name, tensor in loaded.module(torch.from_numpy(images)).items()}
    for score_threshold, multi_label, least in ((0.25, False, 8), (0.001, True, 300)):
        inputs = {
            **heads,
            "attributes": dataclasses.replace(spec.attributes(), multi_label=multi_label),
            "priors": spec.priors(),
            "score_threshold": score_threshold,
            "iou_threshold": 0.65,
        }
        result = run_everywhere(inputs)
        assert result.num_detections.sum() > least
        assert_agrees(result, **inputs)
        expected = reference(**inputs)
        np.testing.assert_array_equal(result.num_detections, expected.num_detections)
        np.testing.assert_allclose(result.scores, expected.scores, atol=DECISION)
