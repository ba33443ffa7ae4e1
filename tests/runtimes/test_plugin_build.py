"""What the engines' plugins have in common: where they are kept, when they are stale, and what doctor says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boxwright.cli.main import main
from boxwright.core.errors import UnsupportedError
from boxwright.runtimes import openvino_plugin, tensorrt_plugin
from boxwright.runtimes.plugin_build import cannot_build, find_sources, plugin_folder, source_digest

FILES = ("CMakeLists.txt", "decode_nms.h", "plugin_openvino.cpp", "plugin_tensorrt.cpp", "cuda/scan.h", "fuzz/case.cpp")


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    for name in FILES:
        path = tmp_path / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("// 1\n")
    return tmp_path / "csrc"


@pytest.mark.parametrize(
    ("changed", "for_openvino", "for_tensorrt"),
    [
        ("decode_nms.h", True, True),
        ("CMakeLists.txt", True, True),
        ("plugin_openvino.cpp", True, False),
        ("plugin_tensorrt.cpp", False, True),
        ("cuda/scan.h", False, True),
        ("fuzz/case.cpp", False, False),
    ],
)
def test_a_plugin_is_stale_where_its_own_sources_changed(
    changed: str, for_openvino: bool, for_tensorrt: bool, sources: Path
) -> None:
    others = (openvino_plugin._OTHER_ENGINES, tensorrt_plugin._OTHER_ENGINES)
    before = [source_digest(sources, without=names) for names in others]
    (sources / changed).write_text("// 2\n")
    after = [source_digest(sources, without=names) for names in others]
    assert [a != b for a, b in zip(after, before, strict=True)] == [for_openvino, for_tensorrt]


def test_the_real_sources_are_found() -> None:
    for name in ("plugin_openvino.cpp", "plugin_tensorrt.cpp"):
        sources = find_sources(name)
        assert sources is not None and (sources / "CMakeLists.txt").is_file()
    assert find_sources("plugin_of_nothing.cpp") is None


def test_the_cache_is_by_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = plugin_folder("openvino", "2026.4.1-21023-releases/2026/4", "0123")
    assert folder.parent == tmp_path / "boxwright" / "plugins"
    assert folder.name.startswith("openvino-2026.4.1-21023-releases_2026_4-")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert plugin_folder("openvino", "1", "0123").is_relative_to(Path.home() / ".cache")


def built() -> tuple[Path, bool]:
    return Path("/cache/libboxwright.so"), True


def not_built() -> tuple[Path, bool]:
    raise cannot_build("the program cmake", "none on the PATH", "run: pip install cmake")


def test_doctor_says_of_each_engine_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openvino_plugin, "build_openvino_plugin", not_built)
    monkeypatch.setattr(tensorrt_plugin, "build_tensorrt_plugin", built)
    assert main(["doctor", "--build-plugins"]) == 0
    openvino, tensorrt = capsys.readouterr().out.splitlines()
    assert openvino.startswith("plugin openvino: not built: ") and "expected the program cmake" in openvino
    assert tensorrt == "plugin tensorrt: built: /cache/libboxwright.so"
    assert main(["doctor", "--build-plugins", "--json"]) == 0
    plugins = json.loads(capsys.readouterr().out)["plugins"]
    assert plugins["tensorrt"] == {"path": "/cache/libboxwright.so", "built_now": True, "problem": None}
    assert plugins["openvino"]["path"] is None and "cmake" in plugins["openvino"]["problem"]


def test_doctor_fails_where_no_plugin_can_be_built(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openvino_plugin, "build_openvino_plugin", not_built)
    monkeypatch.setattr(tensorrt_plugin, "build_tensorrt_plugin", not_built)
    assert main(["doctor", "--build-plugins"]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert "for openvino: " in captured.err and "for tensorrt: " in captured.err


def test_a_missing_plugin_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"none for version 8.5.3; run: boxwright doctor --build-plugins"):
        tensorrt_plugin.require_tensorrt_plugin("8.5.3", "m.engine")
