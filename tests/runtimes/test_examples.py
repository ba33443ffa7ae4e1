"""The examples run as their first lines say."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import cv2
import pytest

from models_for_tests import colour_image, save_colour_cells

pytest.importorskip("onnxruntime")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("name", ["detect_image", "count_in_video", "time_stages"])
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_colour_cells(tmp_path / "m.onnx")
    photo, annotated = tmp_path / "photo.png", tmp_path / "annotated.png"
    cv2.imwrite(str(photo), colour_image((1, 2, "red")))
    monkeypatch.setattr(sys, "argv", [name, str(model), str(photo), str(annotated)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    output = capsys.readouterr().out
    expected = {
        "detect_image": "red 1.00: 12.0, 4.0 to 28.0, 20.0",
        "count_in_video": f"{photo}: {{'red': 1}}",
        "time_stages": "postprocess",
    }
    assert expected[name] in output
    assert annotated.exists() == (name == "detect_image")
