"""What an export may replace, and what it must leave alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from boxwright.core.errors import ModelFileError, OutputError
from boxwright.export import ExportOptions, export


@pytest.fixture
def foreign(shared_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(shared_dir / "weights" / "yolox_nano_coco.onnx", tmp_path / "nano.onnx"))


def test_the_source_is_never_replaced(foreign: Path) -> None:
    before = foreign.read_bytes()
    with pytest.raises(OutputError, match="the source itself"):
        export(foreign, foreign, head="yolox", labels="coco", preprocess="yolox-legacy")
    assert foreign.read_bytes() == before


def test_a_name_that_was_made_up_replaces_no_file_of_others(foreign: Path, shared_dir: Path) -> None:
    checkpoint = shutil.copy(shared_dir / "weights" / "yolox_nano_coco.pth", foreign.with_suffix(".pth"))
    before = foreign.read_bytes()
    with pytest.raises(OutputError, match="name it with --out"):
        export(checkpoint, model="yolox-nano", labels="coco", preprocess="yolox-legacy")
    assert foreign.read_bytes() == before


def test_a_folder_of_other_things_is_left_alone(foreign: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(b"precious")
    with pytest.raises(OutputError, match="a folder of other things"):
        export(
            foreign,
            folder,
            head="yolox",
            labels="coco",
            preprocess="yolox-legacy",
            options=ExportOptions(format="openvino"),
        )
    assert (folder / "photo.jpg").read_bytes() == b"precious"


def test_a_folder_that_is_not_there_is_not_made(foreign: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "m.onnx"
    with pytest.raises(OutputError, match=r"expected the folder .*new, got none of that name"):
        export(foreign, out, head="yolox", labels="coco", preprocess="yolox-legacy")
    assert not out.parent.exists()


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="a path that does not exist"):
        export(tmp_path / "new" / "m.pth")
    assert not (tmp_path / "new").exists()
