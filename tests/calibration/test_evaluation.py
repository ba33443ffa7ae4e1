"""Times of one variant, from its ratio to the float model."""

from __future__ import annotations

import contextlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxwright.calibration.evaluation import Evaluator
from boxwright.calibration.variant import Variant
from quantization_models import float_model


@pytest.mark.parametrize(("float_ms", "wanted"), [(None, 3.0), (10.0, 30.0)])
def test_a_time_stands_on_the_basis_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, float_ms: float | None, wanted: float
) -> None:
    """6 ms a batch of two images, while the float model takes 2, which took 10 an image when it was measured alone."""
    monkeypatch.setattr("boxwright.calibration.evaluation.measure_in_turns", lambda backends, inputs: [6.0, 2.0])
    monkeypatch.setattr(Evaluator, "opened", lambda self, variant, leave_out: contextlib.nullcontext())
    unused: Any = None
    backend: Any = types.SimpleNamespace(inputs={})
    evaluator = Evaluator(float_model(tmp_path), unused, macs={})
    images = {"images": np.zeros((2, 3, 4, 4), np.float32)}
    assert evaluator._time(backend, Variant(engine="onnxruntime"), images, float_ms) == wanted
