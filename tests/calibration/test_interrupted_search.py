"""Ctrl-C in a search: nothing is written but what was measured, which the next search uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boxwright.calibration.evaluation import Evaluator
from boxwright.cli.main import main
from colour_data import write_colour_data
from colour_network import save_colour_network

NUM_BEFORE = 6


def test_ctrl_c_writes_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("boxwright.calibration.stopwatch._BLOCK_S", 0.002)
    evaluate, measured = Evaluator.evaluate, list[str]()

    def until_interrupted(self: Evaluator, variant: Any, choice: Any, **wishes: Any) -> Any:
        if len(measured) == NUM_BEFORE:
            raise KeyboardInterrupt
        key = {**variant.key(), "num_images": len(choice.samples), **wishes}
        measured.append(json.dumps(key, sort_keys=True, default=str))
        return evaluate(self, variant, choice, **wishes)

    monkeypatch.setattr(Evaluator, "evaluate", until_interrupted)
    model = save_colour_network(tmp_path / "m.onnx")
    data = write_colour_data(tmp_path / "colours", num_images=16)
    out = tmp_path / "files" / "m_int8.onnx"
    command = ["calibrate", str(model), "--data", str(data), "--split", "val", "--out", str(out)]
    command += ["--max-drop", "5", "--engines", "onnxruntime"]
    assert main(command) == 130
    error = capfd.readouterr().err
    assert error.strip().splitlines()[-1] == "boxwright: interrupted" and "Traceback" not in error
    assert list(out.parent.iterdir()) == []

    before = list(measured)
    measured.clear()
    monkeypatch.setattr(f"{__name__}.NUM_BEFORE", 10**9)
    assert main(command) == 0
    assert sorted(entry.name for entry in out.parent.iterdir()) == ["m_int8.onnx", "m_int8_report"]
    assert len(before) == len(set(before)) == 6 and measured
    assert not set(before) & set(measured)
