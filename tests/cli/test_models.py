"""`boxwright models`: what can be built, with its size."""

import json
import sys

import pytest

from boxwright.cli.main import main

pytest.importorskip("torch")


def test_json_has_every_variant_with_its_size(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    entries = json.loads(capfd.readouterr().out)["models"]
    variants = {entry["variant"]: entry for entry in entries}
    assert len(variants) == len(entries)
    assert {f"yolox-{size}" for size in ("nano", "tiny", "s", "m", "l", "x")} <= set(variants)
    nano = variants["yolox-nano"]
    assert nano["family"] == "yolox"
    assert nano["input_size_hw"] == [416, 416]
    assert nano["parameters"] == pytest.approx(0.91e6, rel=0.01)  # as its authors state
    assert nano["gflops"] == pytest.approx(1.08, rel=0.05)  # as its authors state
    assert all(entry["imports"] for entry in entries)


def test_text_is_a_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    out = capfd.readouterr().out
    assert "yolox-nano" in out
    assert "0.91 M" in out


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("boxwright.models")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["models"]) == 2
    assert capfd.readouterr().err == (
        "boxwright: boxwright models: expected the package torch, got an environment without it; "
        "run: pip install 'boxwright[export]'\n"
    )
