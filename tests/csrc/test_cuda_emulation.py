"""The steps of the CUDA kernels, block by block and thread by thread on the CPU, against reference and CPU kernels."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agreement import assert_agrees
from boxwright.core import kernels
from boxwright.core.decode import DecodeNmsOutput
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from decode_nms_cases import Case
from decode_nms_cuda_library import CSRC, ENTRY, INCLUDES, SOURCES, EmulatedKernels

CORPUS = (Path(__file__).parents[1] / "core" / "decode_nms_corpus.jsonl").read_text().splitlines()
NUM_PARTS = 8
FORWARD, BACKWARD, SHUFFLED = range(3)
COMPILER = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler: neither g++ nor clang++ is on the PATH"),
    pytest.mark.xdist_group("cuda emulation"),  # compiled once
]


def build(folder: Path, *options: str) -> EmulatedKernels:
    library = folder / "decode_nms_cuda_emulated.so"
    assert COMPILER is not None
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
    command = [COMPILER, "-std=c++17", "-O2", "-ffp-contract=off", *warnings, "-shared", "-fPIC", *INCLUDES, *options]
    sources = [ENTRY / "decode_nms_cuda_emulated.cpp", *SOURCES]
    subprocess.run([*command, *map(str, sources), "-o", str(library)], check=True)
    return EmulatedKernels(library)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> EmulatedKernels:
    return build(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="module")
def emulated_in_small_blocks(tmp_path_factory: pytest.TempPathFactory) -> EmulatedKernels:
    """With chunks of 128 candidates and tiles of 8, so that small cases go through many of both."""
    return build(tmp_path_factory.mktemp("small"), "-DBOXWRIGHT_SMALL_BLOCKS")


def assert_equal(actual: DecodeNmsOutput, expected: DecodeNmsOutput, message: str = "") -> None:
    for field, a, b in zip(DecodeNmsOutput._fields, actual, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=f"{field}: {message}")


def is_small(case: Case) -> bool:
    return case.batch_size * case.num_anchors * case.num_classes <= 2_000_000


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_the_corpus(part: int, emulated: EmulatedKernels, emulated_in_small_blocks: EmulatedKernels) -> None:
    """The reference accepts it, small blocks give the same, and the CPU kernels, where built, the same bits."""
    for line in CORPUS[part::NUM_PARTS]:
        case = Case.from_json(line)
        if not is_small(case):
            continue
        inputs = case.inputs()
        result = emulated.decode_nms(**inputs)
        try:
            assert_agrees(result, **inputs)
            assert_equal(emulated_in_small_blocks.decode_nms(**inputs, thread_order=BACKWARD), result, "small blocks")
            if kernels.instruction_sets():
                assert_equal(kernels.decode_nms(**inputs), result, "CPU kernels")
        except AssertionError as error:
            raise AssertionError(f"{error}\nfor the case {line}") from error


@pytest.mark.parametrize(("score_threshold", "multi_label"), [(0.25, False), (0.001, True)])
def test_the_heads_of_a_trained_detector(
    trained_heads: tuple[dict[str, Any], DecodeNmsAttributes],
    emulated: EmulatedKernels,
    score_threshold: float,
    multi_label: bool,
) -> None:
    arrays, attributes = trained_heads
    inputs = {
        **arrays,
        "attributes": dataclasses.replace(attributes, multi_label=multi_label),
        "score_threshold": score_threshold,
        "iou_threshold": 0.65,
    }
    result = emulated.decode_nms(**inputs)
    assert result.num_detections.sum() >= (10_000 if multi_label else 300)
    assert_agrees(result, **inputs)
    if kernels.instruction_sets():
        assert_equal(kernels.decode_nms(**inputs), result, "CPU kernels")


@pytest.mark.slow
@pytest.mark.skipif(not kernels.instruction_sets(), reason="the compiled kernels are not built")
@pytest.mark.parametrize("line", [line for line in CORPUS if not is_small(Case.from_json(line))])
def test_the_largest_of_the_corpus(line: str, emulated: EmulatedKernels) -> None:
    inputs = Case.from_json(line).inputs()
    assert_equal(emulated.decode_nms(**inputs), kernels.decode_nms(**inputs), line)


def dense_case(**changes: Any) -> Case:
    """Many more candidates than a chunk, with ties, in several images."""
    attributes = DecodeNmsAttributes(
        box_coding="yolox", score_combination="multiply", multi_label=True, max_detections=300
    )
    attributes = dataclasses.replace(attributes, **changes.pop("attributes", {}))
    return dataclasses.replace(
        Case(
            seed=11,
            batch_size=2,
            num_anchors=1511,
            num_classes=7,
            attributes=attributes,
            score_threshold=0.001,
            iou_threshold=0.65,
            logit_mean=-0.5,
            logit_step=0.25,
        ),
        **changes,
    )


DENSE = {
    "early stop": dense_case(),
    "all candidates": dense_case(iou_threshold=0.05, attributes={"max_detections": 5000, "class_agnostic": True}),
    "no NMS": dense_case(attributes={"with_nms": False, "max_detections": 4000}),
    "top-k of the image": dense_case(attributes={"pre_nms_top_k": 1500, "max_detections": 4000}),
    "top-k of classes": dense_case(
        attributes={"pre_nms_top_k": 333, "top_k_scope": "class", "max_detections": 4000, "overlap": "diou"}
    ),
    "top-k of levels": dense_case(
        attributes={"pre_nms_top_k": 900, "top_k_scope": "level", "level_sizes": (1000, 0, 511)}
    ),
    "all scores equal": dense_case(logit_spread=0.0, attributes={"max_detections": 2000}),
    "long rows": dense_case(num_anchors=11, num_classes=3001, attributes={"max_detections": 700}),
    "long rows, one label": dense_case(num_anchors=11, num_classes=3001, attributes={"multi_label": False}),
    "softmax of long rows": dense_case(
        num_anchors=37,
        num_classes=1003,
        score_threshold=0.0,
        attributes={"score_activation": "softmax", "background_class": 0},
    ),
    "scores above one": dense_case(
        num_classes=3,
        logit_mean=3.0,
        attributes={"score_activation": "none", "objectness_activation": "none", "max_detections": 3000},
    ),
    "threshold 0": dense_case(score_threshold=0.0, attributes={"max_detections": 20_000, "with_nms": False}),
    "specials": dense_case(special_fraction=0.1, attributes={"score_combination": "sqrt", "clip_to_image": True}),
}


@pytest.mark.parametrize("name", DENSE)
def test_threads_and_blocks_may_come_in_any_order(
    name: str, emulated: EmulatedKernels, emulated_in_small_blocks: EmulatedKernels
) -> None:
    inputs = DENSE[name].inputs()
    expected = emulated.decode_nms(**inputs, thread_order=FORWARD)
    assert expected.num_detections.min() > 10
    for order in (BACKWARD, SHUFFLED):
        assert_equal(emulated.decode_nms(**inputs, thread_order=order), expected, f"order {order}")
    assert_equal(emulated_in_small_blocks.decode_nms(**inputs, thread_order=SHUFFLED), expected, "small blocks")
    if kernels.instruction_sets():
        assert_equal(kernels.decode_nms(**inputs), expected, "CPU kernels")
    else:
        assert_agrees(expected, **inputs)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "none"])
@pytest.mark.parametrize("sizes", [(1, 40, 3), (2, 301, 5), (3, 77, 80)])
@pytest.mark.parametrize("multi_label", [False, True])
def test_float16_heads_are_those_numbers_in_float32(
    activation: str, sizes: tuple[int, int, int], multi_label: bool, emulated: EmulatedKernels
) -> None:
    batch_size, num_anchors, num_classes = sizes
    case = dense_case(
        batch_size=batch_size,
        num_anchors=num_anchors,
        num_classes=num_classes,
        logit_step=0.0,
        special_fraction=0.02,
        attributes={"score_activation": activation, "multi_label": multi_label},
    )
    inputs = case.inputs()
    with np.errstate(over="ignore"):
        halves = {name: inputs[name].astype(np.float16) for name in ("class_logits", "box_regression", "objectness")}
    floats = {name: array.astype(np.float32) for name, array in halves.items()}
    result = emulated.decode_nms(**{**inputs, **halves})
    assert result.num_detections.min() > 5
    assert_equal(result, emulated.decode_nms(**{**inputs, **floats}))
    assert_agrees(result, **{**inputs, **floats})


@pytest.mark.parametrize(
    ("score_threshold", "iou_threshold"),
    [(-0.1, 0.5), (1.5, 0.5), (np.nan, 0.5), (0.5, -1e-6), (0.5, 2), (0.5, np.nan)],
)
def test_thresholds_that_are_none_are_told_by_the_counts(
    score_threshold: float, iou_threshold: float, emulated: EmulatedKernels
) -> None:
    inputs = dense_case().inputs()
    inputs |= {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
    result = emulated.decode_nms(**inputs)
    assert result.num_detections.tolist() == [[-1], [-1]]
    assert not result.boxes.any() and not result.scores.any() and (result.class_ids == -1).all()


@pytest.mark.parametrize("threshold", [0.0, -0.0, 1.0])
def test_the_ends_of_the_range_are_thresholds(threshold: float, emulated: EmulatedKernels) -> None:
    inputs = dense_case().inputs() | {"score_threshold": threshold, "iou_threshold": threshold}
    result = emulated.decode_nms(**inputs)
    assert (result.num_detections >= 0).all() and (result.num_detections > 0).all() == (threshold != 1.0)
    assert_agrees(result, **inputs)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attributes": {"max_detections": 0}}, "max_detections: expected a number from 1"),
        ({"attributes": {"box_coding": "yolov9"}}, "unknown name"),
        ({"attributes": {"box_coding": "yolov5", "level_sizes": (7,), "level_strides": (8.0,)}}, "sum to N = 1511"),
        ({"attributes": {"level_sizes": (1,) * 33}}, "at most 32 on a GPU, got 33"),
        ({"attributes": {"background_class": 7}}, "background_class: expected an index below 7"),
        ({"attributes": {"score_combination": "none"}}, "objectness: expected none"),
        ({"attributes": {"clip_to_image": True}}, "image_size_hw: expected sizes"),
        ({"priors": None}, "priors: expected priors"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], expected: str, emulated: EmulatedKernels) -> None:
    inputs = dense_case().inputs()
    attributes = dataclasses.replace(inputs["attributes"])
    for name, value in changes.pop("attributes", {}).items():
        object.__setattr__(attributes, name, value)  # past the checks of Python
    with pytest.raises(ValueError, match=expected):
        emulated.decode_nms(**{**inputs, "attributes": attributes, **changes})


@pytest.mark.parametrize("options", [(), ("-DBOXWRIGHT_SMALL_BLOCKS",)], ids=["as on a GPU", "small blocks"])
def test_random_cases_under_sanitizers(options: tuple[str, ...], tmp_path: Path) -> None:
    """No step beyond an array, and the bits of the CPU kernels."""
    assert COMPILER is not None
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}\n")
    compiles = subprocess.run([COMPILER, *sanitize, str(probe), "-o", str(tmp_path / "probe")], check=False)
    if compiles.returncode != 0:
        pytest.skip(f"{COMPILER} has no AddressSanitizer here")
    program = tmp_path / "cuda_steps_test"
    cpu_kernels = ["candidates", "decode_nms", "instruction_set", "ranking", "vector_kernels", "vector_kernels_plain"]
    sources = [ENTRY / "cuda_steps_test.cpp", *SOURCES, *(CSRC / f"{name}.cpp" for name in cpu_kernels)]
    command = [COMPILER, "-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-pthread", *sanitize, *options, *INCLUDES]
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
    finished = subprocess.run([program, "400"], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.startswith("400 cases, ")
