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
    alone = {variant for variant, entry in variants.items() if not entry["exportable"]}
    assert alone and all(variant.startswith(("rcnn-", "fastrcnn-")) for variant in alone)


def test_text_is_a_table(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from boxwright import models

    nano = models.ModelInfo(
        family="yolox",
        variant="yolox-nano",
        size_hw=(416, 640),
        num_parameters=912345,
        gflops=1.0567,
        imports="the authors' files",
    )
    monkeypatch.setattr(models, "list_models", lambda: (nano,))  # counting all of them takes seconds
    assert main(["models"]) == 0
    out = capfd.readouterr().out
    (row,) = [line for line in out.splitlines() if "yolox-nano" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["yolox", "yolox-nano", "416x640", "0.91 M", "1.06"]
    assert "yolox imports: the authors' files\n" in out


def test_without_torch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("boxwright.models")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["models"]) == 2
    assert capfd.readouterr().err == (
        "boxwright: boxwright models: expected the package torch, got an environment without it; "
        "run: pip install 'boxwright[export]'\n"
    )
