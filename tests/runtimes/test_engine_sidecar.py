"""What lies beside an engine, and whether the engine fits the machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from boxwright.core.decode_spec import Boxes
from boxwright.core.errors import ManifestError, ModelFileError
from boxwright.core.manifest import Manifest
from boxwright.core.preprocess_presets import preset
from boxwright.runtimes.engine_sidecar import (
    EngineSidecar,
    check_fits_machine,
    check_intact,
    read_sidecar,
    sidecar_path,
    write_sidecar,
)

CONTENT = b"an engine"


def make_sidecar(**changes: object) -> EngineSidecar:
    manifest = Manifest(
        family="yolox",
        variant="yolox-nano",
        class_names=("a", "b"),
        preprocess=preset("yolox", (64, 96)),
        decode=Boxes(num_classes=2, score_activation="none"),
        stage="detections",
    )
    sidecar = EngineSidecar(
        manifest=manifest,
        tensorrt_version="10.9.0.34",
        gpu_name="NVIDIA L4",
        compute_capability="8.9",
        precision="fp16",
        engine_sha256=hashlib.sha256(CONTENT).hexdigest(),
        rebuild_command="boxwright export m.onnx --format tensorrt --precision fp16",
        needs_plugin=True,
        build_options={"workspace": "1024 MiB"},
    )
    return dataclasses.replace(sidecar, **changes)  # type: ignore[arg-type]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    engine = tmp_path / "m.engine"
    write_sidecar(engine, make_sidecar(dla_core=1))
    assert read_sidecar(engine) == make_sidecar(dla_core=1)
    assert sidecar_path(engine).name == "m.engine.manifest.json"
    assert [file.name for file in tmp_path.iterdir()] == ["m.engine.manifest.json"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data | {"speed": 3}, "unknown key 'speed'"),
        (lambda data: {key: value for key, value in data.items() if key != "gpu_name"}, "gpu_name"),
        (lambda data: data | {"schema_version": 2, "news": 1}, "update boxwright"),
        (lambda data: data | {"precision": "fp8"}, "fp8"),
        (lambda data: [data], "an object"),
    ],
)
def test_a_sidecar_that_cannot_be_used_is_one_line(tmp_path: Path, change: object, words: str) -> None:
    engine = tmp_path / "m.engine"
    data = json.loads(make_sidecar().to_json())
    sidecar_path(engine).write_text(json.dumps(change(data)))  # type: ignore[operator]
    with pytest.raises(ManifestError, match=r"m\.engine\.manifest\.json") as caught:
        read_sidecar(engine)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00"])
def test_a_sidecar_that_is_no_json(tmp_path: Path, content: bytes) -> None:
    engine = tmp_path / "m.engine"
    sidecar_path(engine).write_bytes(content)
    with pytest.raises(ManifestError, match=r"m\.engine\.manifest\.json"):
        read_sidecar(engine)


def test_a_missing_sidecar_names_the_file_and_the_command(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"m.plan.manifest.json beside it, .*--format tensorrt"):
        read_sidecar(tmp_path / "m.plan")


@pytest.mark.parametrize("content", [b"", CONTENT[:-1], b"another"])
def test_another_file_than_the_described_one_is_refused(content: bytes) -> None:
    check_intact("m.engine", CONTENT, make_sidecar())
    with pytest.raises(ModelFileError, match="--precision fp16"):
        check_intact("m.engine", content, make_sidecar())


@pytest.mark.parametrize(
    ("changes", "version", "capability", "words"),
    [
        ({}, "10.9.0.34", "8.9", None),
        ({}, "10.9.0", "8.9", None),
        ({}, "10.9.1", "8.9", "TensorRT 10.9.1"),
        ({}, "8.6.1", "8.9", "TensorRT 8.6.1"),
        ({}, "10.9.0.34", "9.0", r"NVIDIA H100 \(9.0\)"),
        ({}, "11.0.0", "9.0", r"TensorRT 11.0.0 and NVIDIA H100"),
        ({"hardware_compatible": True}, "10.9.0.34", "9.0", None),
        ({"hardware_compatible": True}, "10.9.0.34", "7.5", "7.5"),
        ({"version_compatible": True}, "10.13.2", "8.9", None),
        ({"version_compatible": True}, "10.8.0", "8.9", "10.8.0"),
        ({"version_compatible": True}, "11.0.0", "8.9", "11.0.0"),
    ],
)
def test_an_engine_for_something_else(
    changes: dict[str, object], version: str, capability: str, words: str | None
) -> None:
    def check() -> None:
        check_fits_machine(
            "m.engine",
            make_sidecar(**changes),
            tensorrt_version=version,
            gpu_name="NVIDIA H100",
            compute_capability=capability,
        )

    if words is None:
        check()
        return
    with pytest.raises(ModelFileError, match=words) as caught:
        check()
    assert str(caught.value).endswith("run here: boxwright export m.onnx --format tensorrt --precision fp16")
