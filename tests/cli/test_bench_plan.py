"""Which file each combination of a matrix is measured with, and what is made for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxwright.cli._bench_artifacts import ArtifactCache, SourceOptions
from boxwright.cli._bench_plan import Matrix, plan_candidates
from boxwright.runtimes import tensorrt
from models_for_tests import colour_cells_manifest, save_colour_cells


class RecordingCache(ArtifactCache):
    """Makes empty or tiny files at once, and keeps what it was asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, folder, on_note=lambda text: None)
        self.folder = folder
        self.asked: list[tuple[object, ...]] = []

    def onnx(self, source: Path, options: SourceOptions, size_hw: tuple[int, int] | None) -> Path:
        self.asked.append(("onnx", source.name, size_hw))
        return save_colour_cells(self.folder / f"{source.stem}_{size_hw and size_hw[0]}.onnx", "raw")

    def openvino(self, onnx_path: Path) -> Path:
        self.asked.append(("openvino", onnx_path.name))
        return self.folder / f"{onnx_path.stem}_openvino_model"

    def tensorrt(self, onnx_path: Path, precision: str) -> Path:
        self.asked.append(("tensorrt", onnx_path.name, precision))
        return self.folder / f"{onnx_path.stem}_{precision}.engine"

    def int8(self, onnx_path: Path, *, engine: str, split: str) -> Path:
        self.asked.append(("int8", onnx_path.name, engine, split))
        return self.folder / f"{onnx_path.stem}_int8_{engine}.onnx"


def plan(
    models: list[Path], cache: RecordingCache, backends: str, precisions: str, sizes: tuple[int, ...] = ()
) -> dict:
    """(backend, precision, size) -> candidate."""
    matrix = Matrix(
        backends=tuple(backends.split()),
        precisions=tuple(precisions.split()),
        sizes_hw=tuple((size, size) for size in sizes),
        device=None,
        num_threads=1,
    )
    candidates = plan_candidates(models, matrix, SourceOptions(), cache)
    return {(entry.backend, entry.precision, entry.variation): entry for entry in candidates}


def test_a_checkpoint_becomes_what_each_engine_needs(tmp_path: Path) -> None:
    checkpoint = tmp_path / "best.pt"
    checkpoint.touch()
    cache = RecordingCache(tmp_path)
    planned = plan([checkpoint], cache, "onnxruntime openvino torch", "fp32 bf16 int8", (320, 416))
    files = {key: Path(entry.model).name for key, entry in planned.items()}
    assert len(files) == 18
    for size in (320, 416):
        shown = f"{size}x{size}"
        assert files["onnxruntime", "fp32", shown] == f"best_{size}.onnx"
        assert files["onnxruntime", "int8", shown] == f"best_{size}_int8_onnxruntime.onnx"
        assert files["openvino", "bf16", shown] == f"best_{size}_openvino_model"
        assert files["openvino", "int8", shown] == f"best_{size}_int8_openvino.onnx"
        torch_row = planned["torch", "fp32", shown]
        assert (torch_row.model, torch_row.opener_options["size_hw"]) == (str(checkpoint), [size, size])
    assert {entry.model_shown for entry in planned.values()} == {str(checkpoint)}
    assert ("int8", "best_320.onnx", "openvino", "train") in cache.asked


def test_tensorrt_gets_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "available", lambda: None)
    path = save_colour_cells(tmp_path / "m.onnx", "raw")
    cache = RecordingCache(tmp_path)
    planned = plan([path], cache, "tensorrt", "fp32 fp16 bf16 int8")
    files = {key[1]: Path(entry.model).name for key, entry in planned.items()}
    assert files == {
        "fp32": "m_fp32.engine",
        "fp16": "m_fp16.engine",
        "bf16": "m.onnx",  # a row that says that it cannot be
        "int8": "m_int8_tensorrt_int8.engine",
    }
    refused = planned["tensorrt", "bf16", None]
    assert refused.opener_options["unsupported"] and "fp32, fp16, int8" in refused.opener_options["reason"]


def test_an_engine_that_is_not_there_is_a_row_and_nothing_is_made_for_it(tmp_path: Path) -> None:
    if tensorrt.available() is None:
        pytest.skip("TensorRT is installed here")
    checkpoint = tmp_path / "best.pt"
    checkpoint.touch()
    cache = RecordingCache(tmp_path)
    planned = plan([checkpoint], cache, "tensorrt", "fp32 int8")
    for entry in planned.values():
        assert entry.opener.endswith(":refuse_candidate") and entry.opener_options["unsupported"]
        assert "tensorrt" in entry.opener_options["reason"]
    assert cache.asked == []


def test_an_int8_file_is_its_own_artifact(tmp_path: Path) -> None:
    path = save_colour_cells(tmp_path / "m_int8.onnx", "raw", manifest=colour_cells_manifest("raw", precision="int8"))
    cache = RecordingCache(tmp_path)
    planned = plan([path], cache, "onnxruntime openvino", "fp32 int8")
    assert {(key, entry.model) for key, entry in planned.items()} == {
        (("onnxruntime", "int8", None), str(path)),
        (("openvino", "int8", None), str(path)),
    }
    assert cache.asked == []
