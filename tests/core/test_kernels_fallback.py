"""Without the compiled kernels the reference serves."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from agreement import assert_agrees
from boxwright.core import kernels
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from boxwright.core.preprocess import Preprocess
from decode_nms_cases import Case

TESTS = Path(__file__).resolve().parents[1]
USE_BOTH = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import numpy as np
    from boxwright.core import kernels
    from boxwright.core.preprocess import Preprocess
    import boxwright.core.kernels
    from core.test_kernels_fallback import CASE
    Preprocess(size_hw=(32, 32)).apply(np.zeros((9, 9, 3), np.uint8))
    kernels.decode_nms(**CASE.inputs())
ours = [str(w.message) for w in caught if "boxwright" in str(w.message)]
print(kernels.instruction_sets(), len(ours), *ours)
"""

CASE = Case(
    seed=1,
    batch_size=2,
    num_anchors=60,
    num_classes=4,
    attributes=DecodeNmsAttributes(box_coding="yolox", max_detections=20),
    score_threshold=0.2,
    iou_threshold=0.5,
)


def run_python(code: str, **environment: str) -> str:
    paths = os.pathsep.join([str(TESTS), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_a_missing_extension_is_warned_of_once() -> None:
    hide = "import sys; sys.modules['boxwright.core._native'] = None\n"
    output = run_python(hide + USE_BOTH, BOXWRIGHT_NATIVE="")
    assert output.startswith("[] 1 boxwright's compiled kernels cannot be imported")
    assert "C++17 compiler" in output


def test_the_environment_asks_for_the_reference_without_a_warning() -> None:
    assert run_python(USE_BOTH, BOXWRIGHT_NATIVE="0") == "[] 0"


@pytest.mark.skipif(not kernels.instruction_sets(), reason="the compiled kernels are not built")
def test_nothing_is_warned_of_where_the_extension_is_there() -> None:
    assert run_python(USE_BOTH, BOXWRIGHT_NATIVE="") == f"{kernels.instruction_sets()} 0"


def test_the_reference_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    preprocess = Preprocess(size_hw=(48, 64))
    inputs = CASE.inputs()
    before = preprocess.apply(image)[0], kernels.decode_nms(**inputs)
    monkeypatch.setattr(kernels, "_native", None)
    assert kernels.instruction_sets() == []
    after = preprocess.apply(image)[0], kernels.decode_nms(**inputs, num_threads=3)
    np.testing.assert_allclose(before[0], after[0], atol=1 / 255)
    assert after[1].num_detections.min() > 0
    for result in (before[1], after[1]):
        assert_agrees(result, **inputs)
