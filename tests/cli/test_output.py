"""What `print_json` makes of the values that results are made of, and what `--imgsz` reads."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxwright.cli._options import parse_image_size
from boxwright.cli._output import print_json
from boxwright.core.errors import InputError, OutputError


@dataclass(frozen=True)
class Nested:
    size_hw: tuple[int, int]
    path: Path


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ({"a": 1, "b": [True, None, "x"]}, {"a": 1, "b": [True, None, "x"]}),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        (np.array([1.0, np.nan, np.inf]), [1.0, None, None]),
        (float("-inf"), None),
        ({3: (1, 2)}, {"3": [1, 2]}),
        (Nested(size_hw=(3, 4), path=Path("a/b.onnx")), {"size_hw": [3, 4], "path": "a/b.onnx"}),
        (np.zeros((0, 4)), []),
        ("Grüße", "Grüße"),
    ],
)
def test_print_json_turns_results_into_plain_json(value: Any, plain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    print_json(value)
    assert json.loads(capsys.readouterr().out) == plain


def test_print_json_refuses_what_has_no_form_in_json() -> None:
    with pytest.raises(TypeError):
        print_json({"x": object()})


@pytest.mark.parametrize(
    ("text", "size_hw"), [("416", (416, 416)), ("416x640", (416, 640)), (" 32x1 ", (32, 1)), ("20000", (20000, 20000))]
)
def test_image_size(text: str, size_hw: tuple[int, int]) -> None:
    assert parse_image_size(text) == size_hw


@pytest.mark.parametrize("text", ["", "0", "-1", "416x", "x416", "416,640", "4.5", "0x5", "1e3", "1x2x3", "1234567"])
def test_image_size_refuses(text: str) -> None:
    with pytest.raises(InputError, match="416x640"):
        parse_image_size(text)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_stdout_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as stream:  # closing it would fail where something was left to write
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(OutputError, match="No space left"):
            print_json({"x": 1})
