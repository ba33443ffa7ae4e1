"""The CUDA kernels on a GPU: the results are those of their emulation, which is held to the reference everywhere.

They are compiled here with nvcc, or taken ready from BOXWRIGHT_CUDA_KERNELS, for a machine with a GPU but no toolkit:

    nvcc -std=c++17 -O3 --fmad=false -arch=sm_90 -shared -Xcompiler -fPIC -Icsrc -Itests/csrc -o decode_nms_cuda.so \\
        tests/csrc/decode_nms_cuda_device.cu csrc/decode_nms_cuda.cu csrc/cuda/parameters.cpp \\
        csrc/decode_nms_validate.cpp

`pytest -m gpu -s tests/gpu/test_decode_nms_cuda.py` prints the times.
"""

from __future__ import annotations

import os
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
from decode_nms_cuda_library import CSRC, ENTRY, INCLUDES, SOURCES, DeviceKernels

pytestmark = pytest.mark.gpu
CORPUS = (Path(__file__).parents[1] / "core" / "decode_nms_corpus.jsonl").read_text().splitlines()
NUM_PARTS = 8


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> DeviceKernels:
    given = os.environ.get("BOXWRIGHT_CUDA_KERNELS")
    library = Path(given) if given else _built(tmp_path_factory.mktemp("cuda") / "decode_nms_cuda.so")
    device = DeviceKernels(library)
    if device.device_name() is None:
        pytest.skip("no NVIDIA GPU here")
    return device


def _built(library: Path) -> Path:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on the PATH, and BOXWRIGHT_CUDA_KERNELS names no library")
    options = ["-std=c++17", "-O3", "--fmad=false", "-arch=native", "-shared", "-Xcompiler", "-fPIC", *INCLUDES]
    sources = [ENTRY / "decode_nms_cuda_device.cu", CSRC / "decode_nms_cuda.cu", *SOURCES]
    subprocess.run([nvcc, *options, *map(str, sources), "-o", str(library)], check=True)
    return library


def assert_equal(actual: DecodeNmsOutput, expected: DecodeNmsOutput, message: str = "") -> None:
    for field, a, b in zip(DecodeNmsOutput._fields, actual, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=f"{field}: {message}")


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_the_corpus(part: int, device: DeviceKernels) -> None:
    """The bits of the CPU kernels where those are built; what the reference accepts everywhere."""
    for line in CORPUS[part::NUM_PARTS]:
        case = Case.from_json(line)
        inputs = case.inputs()
        result = device.decode_nms(**inputs)
        if kernels.instruction_sets():
            assert_equal(result, kernels.decode_nms(**inputs), line)
        elif case.batch_size * case.num_anchors * case.num_classes <= 2_000_000:
            assert_agrees(result, **inputs)


def test_a_result_is_the_same_every_time(device: DeviceKernels) -> None:
    inputs = trained_heads(np.random.default_rng(0)) | {"score_threshold": 0.001}
    expected = device.decode_nms(**inputs)
    for _ in range(50):
        assert_equal(device.decode_nms(**inputs), expected)


def test_float16_heads_are_those_numbers_in_float32(device: DeviceKernels) -> None:
    inputs = trained_heads(np.random.default_rng(1)) | {"score_threshold": 0.001}
    halves = {name: inputs[name].astype(np.float16) for name in ("class_logits", "box_regression", "objectness")}
    floats = {name: array.astype(np.float32) for name, array in halves.items()}
    assert_equal(device.decode_nms(**{**inputs, **halves}), device.decode_nms(**{**inputs, **floats}))


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("score_threshold", [0.25, 0.001])
@pytest.mark.parametrize("heads", ["trained", "dense"])
def test_report_the_time_of_8400_anchors_and_80_classes(
    heads: str, score_threshold: float, kind: Any, device: DeviceKernels, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(2)
    inputs = trained_heads(random) if heads == "trained" else dense_heads(random)
    inputs |= {"score_threshold": score_threshold, "class_logits": inputs["class_logits"].astype(kind)}
    device.num_timed_runs = 200
    try:
        result = device.decode_nms(**inputs)
    finally:
        device.num_timed_runs = 0
    assert device.time_us > 0, "the runs could not be captured or replayed"
    with capsys.disabled():
        print(
            f"\n{device.device_name()}: {heads} heads, {np.dtype(kind)}, score threshold {score_threshold}: "
            f"{device.time_us:.1f} us, {num_candidates(inputs)} candidates, {result.num_detections[0, 0]} detections"
        )


def num_candidates(inputs: dict[str, Any]) -> int:
    class_scores = 1 / (1 + np.exp(-inputs["class_logits"].astype(np.float32)))
    scores = class_scores / (1 + np.exp(-inputs["objectness"]))[..., None]
    return int((scores > inputs["score_threshold"]).sum())


def yolox_inputs() -> dict[str, Any]:
    """Priors and attributes of YOLOX at 640x640."""
    priors = []
    for stride in (8, 16, 32):
        y, x = np.mgrid[: 640 // stride, : 640 // stride].reshape(2, -1) * float(stride)
        priors.append(np.stack([x, y, np.full_like(x, stride), np.full_like(x, stride)], axis=1))
    return {
        "priors": np.concatenate(priors).astype(np.float32),
        "attributes": DecodeNmsAttributes(box_coding="yolox", score_combination="multiply", multi_label=True),
        "iou_threshold": 0.7,
    }


def trained_heads(random: np.random.Generator, num_objects: int = 12) -> dict[str, Any]:
    """Heads as YOLOX-nano gives: a hundred candidates or two at 0.25, some thousands at 0.001, most around objects."""
    inputs = yolox_inputs()
    priors = inputs["priors"]
    objectness = random.normal(-9, 1.5, 8400).astype(np.float32)
    logits = random.normal(-8, 1.5, (8400, 80)).astype(np.float32)
    regression = random.normal(0, 0.3, (8400, 4)).astype(np.float32)
    for _ in range(num_objects):
        centre, size, label = random.uniform(50, 590, 2), random.uniform(30, 200, 2), random.integers(80)
        near = np.flatnonzero((np.abs(priors[:, :2] + priors[:, 2:] / 2 - centre) < size / 8).all(axis=1))
        objectness[near] = random.normal(1, 2, len(near))
        logits[near, label] = random.normal(2, 1.5, len(near))
        regression[near, :2] = (centre - priors[near, :2]) / priors[near, 2:]
        regression[near, 2:] = np.log(size / priors[near, 2:])
        regression[near] += random.normal(0, 0.05, (len(near), 4))
    heads = {"box_regression": regression, "class_logits": logits, "objectness": objectness}
    return {**inputs, **{name: array[None] for name, array in heads.items()}}


def dense_heads(random: np.random.Generator) -> dict[str, Any]:
    """Thousands of candidates at every threshold."""
    return {
        **yolox_inputs(),
        "box_regression": random.normal(0, 0.5, (1, 8400, 4)).astype(np.float32),
        "class_logits": random.normal(-2, 2, (1, 8400, 80)).astype(np.float32),
        "objectness": random.normal(-1, 2, (1, 8400)).astype(np.float32),
    }
