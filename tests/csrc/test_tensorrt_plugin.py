"""The TensorRT plugin without a GPU, against the headers of every generation and the real library that are here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from boxwright.core.errors import UnsupportedError
from boxwright.runtimes import tensorrt_plugin
from boxwright.runtimes.plugin_build import find_program
from boxwright.runtimes.tensorrt_plugin import build_tensorrt_plugin, find_installation, find_tensorrt_plugin
from decode_nms_cuda_library import CSRC, ENTRY, INCLUDES, SOURCES
from tensorrt_installations import WRITTEN_DOWN, cuda_include_dir, libraries, tensorrt_roots

PLUGIN = [CSRC / "plugin_tensorrt.cpp", CSRC / "plugin_tensorrt_node.cpp"]
CPU_KERNELS = [
    CSRC / f"{name}.cpp"
    for name in ("candidates", "decode_nms", "instruction_set", "ranking", "vector_kernels", "vector_kernels_plain")
]
COMPILER = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
NVCC = shutil.which("nvcc")


# Without any other, the part of 8.5's headers that is written down here.
INCLUDE_DIRS = {root.name: root / "include" for root in tensorrt_roots()} or {"8.5": WRITTEN_DOWN}
CUDA_INCLUDE_DIR = cuda_include_dir()
LIBRARIES = libraries("libnvinfer.so.*")
needs_headers = pytest.mark.skipif(
    COMPILER is None or CUDA_INCLUDE_DIR is None, reason="no CUDA headers or no C++ compiler"
)
needs_library = pytest.mark.skipif(
    not LIBRARIES or COMPILER is None or NVCC is None or find_program("cmake") is None,
    reason="no TensorRT library in BOXWRIGHT_TENSORRT_ROOT, or no nvcc, CMake and C++ compiler",
)


def compile_test(include_dir: Path, program: Path, *options: str | Path) -> None:
    assert COMPILER is not None
    headers = ["-isystem", str(include_dir), "-isystem", str(CUDA_INCLUDE_DIR), *INCLUDES]
    strict = ["-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations", "-ffp-contract=off", "-pthread"]
    sources = [ENTRY / "tensorrt_plugin_test.cpp", *SOURCES]
    command = [COMPILER, "-std=c++17", "-O0", "-g1", *strict, *headers, *sources, *options, "-ldl", "-o", program]
    finished = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def number_of_tests(output: str) -> int:
    match = re.search(r"(\d+) tests, 0 failures", output)
    assert match is not None, output
    return int(match[1])


@needs_headers
@pytest.mark.parametrize("generation", INCLUDE_DIRS)
def test_the_plugin_in_every_generation(generation: str, tmp_path: Path) -> None:
    """Fields, shapes, types, serialization, errors and a run, the kernels being emulated, under sanitizers."""
    program = tmp_path / "tensorrt_plugin_test"
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    compile_test(INCLUDE_DIRS[generation], program, *sanitize, *PLUGIN, *CPU_KERNELS)
    finished = subprocess.run([program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert number_of_tests(finished.stdout) == 8


@pytest.fixture(scope="module", params=LIBRARIES, ids=lambda library: library.parents[1].name)
def library_root(request: pytest.FixtureRequest) -> Path:
    return Path(request.param).parents[1]


@needs_library
def test_the_real_library_registers_creates_and_reads_the_plugin(
    library_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(library_root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tensorrt_plugin, "_WANTED_ARCHITECTURES", (90,))  # each takes its time to compile
    installation = find_installation()
    plugin, _ = build_tensorrt_plugin()
    assert find_tensorrt_plugin(installation.version) == plugin
    assert build_tensorrt_plugin() == (plugin, False)
    program = tmp_path / "tensorrt_plugin_test"
    folder = installation.library.parent
    compile_test(installation.include_dir, program, "-DBOXWRIGHT_TENSORRT_LIBRARY", installation.library)
    environment = os.environ | {"LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    finished = subprocess.run([program, plugin], env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert number_of_tests(finished.stdout) == 7
    # Without a builder there is no logger, so errors are told on stderr.
    assert "boxwright: DecodeNMS attribute box_coding: expected a known name, got yolov9" in finished.stderr


def fake_root(folder: Path, version_header: str, library: str | None) -> Path:
    (folder / "include").mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "include" / "NvInfer.h").touch()
    (folder / "include" / "NvInferVersion.h").write_text(version_header)
    if library is not None:
        (folder / "lib" / library).touch()
    return folder


OLD_STYLE = "#define NV_TENSORRT_MAJOR {} //!< major\n#define NV_TENSORRT_MINOR {}\n#define NV_TENSORRT_PATCH {}\n"
NEW_STYLE = "#define TRT_MAJOR_ENTERPRISE {}\n#define TRT_MINOR_ENTERPRISE {}\n#define TRT_PATCH_ENTERPRISE {}\n"


@pytest.mark.parametrize(
    ("header", "library", "version"),
    [
        (OLD_STYLE.format(8, 5, 3), "libnvinfer.so.8", "8.5.3"),
        (OLD_STYLE.format(10, 3, 0), "libnvinfer.so.10", "10.3.0"),
        (NEW_STYLE.format(11, 1, 0), "libnvinfer.so.11", "11.1.0"),
    ],
)
def test_an_installation_is_found(
    header: str, library: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(fake_root(tmp_path / "root", header, library)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENSORRT_ROOT", "root")
    assert find_installation().include_dir == tmp_path / "root" / "include"
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path / "root"))
    found = find_installation()
    assert (found.version, found.library.name) == (version, library)
    assert found.include_dir == tmp_path / "root" / "include"
    assert find_tensorrt_plugin(version) is None


@pytest.mark.parametrize(
    ("header", "library", "message"),
    [
        (OLD_STYLE.format(8, 5, 3), "libnvinfer.so.10", "library libnvinfer.so.8, which fits the headers"),
        (OLD_STYLE.format(8, 5, 3), None, "library libnvinfer.so.8, which fits the headers"),
        (OLD_STYLE.format(8, 4, 1), "libnvinfer.so.8", "expected TensorRT 8.5 or newer, got 8.4.1"),
        ("nothing", "libnvinfer.so.8", "expected a version of TensorRT"),
    ],
)
def test_what_does_not_fit_is_one_line(
    header: str, library: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(fake_root(tmp_path / "root", header, library)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=message) as caught:
        find_installation()
    assert "\n" not in str(caught.value)


def test_without_tensorrt_the_headers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"TensorRT's headers \(NvInfer.h\)"):
        build_tensorrt_plugin()


def test_without_nvcc_the_toolkit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fake_root(tmp_path / "root", OLD_STYLE.format(8, 5, 3), "libnvinfer.so.8")
    monkeypatch.setenv("TENSORRT_ROOT", str(root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match="expected NVIDIA's compiler nvcc"):
        build_tensorrt_plugin()
