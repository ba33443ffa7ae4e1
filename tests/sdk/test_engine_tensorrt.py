"""The C++ SDK on TensorRT: on one that is played, and compiled against the headers of every generation that is here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from boxwright.export.onnx_files import read_onnx, set_manifest, write_onnx
from boxwright.runtimes.engine_sidecar import sidecar_path
from fake_tensorrt import engine_description, make_manifest, write_engine
from models_for_tests import save_colour_cells
from tensorrt_installations import cuda_include_dir, has_all_headers, tensorrt_roots

ROOT = Path(__file__).resolve().parents[2]
SOURCE, CSRC, PLAYED = ROOT / "sdk" / "cpp", ROOT / "csrc", Path(__file__).with_name("played_tensorrt")
COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
INCLUDES = [f"-I{SOURCE / 'include'}", f"-I{SOURCE / 'src'}", f"-I{CSRC}"]
STRICT = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations", "-pthread"]
KERNELS = (
    "candidates decode_nms decode_nms_validate instruction_set letterbox ranking vector_kernels vector_kernels_plain"
)
pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C++ compiler"),
    pytest.mark.xdist_group("engine_tensorrt"),  # compiled once
]


HEADER_ROOTS = [root for root in tensorrt_roots() if has_all_headers(root)]


@pytest.mark.parametrize("root", HEADER_ROOTS or [None], ids=lambda root: getattr(root, "name", "none"))
def test_it_compiles_against_every_generation(root: Path | None) -> None:
    cuda = cuda_include_dir()
    if root is None or cuda is None:
        pytest.skip("no TensorRT headers (name them by BOXWRIGHT_TENSORRT_ROOT), or no CUDA headers")
    headers = ["-isystem", str(root / "include"), "-isystem", str(cuda)]
    command = [
        str(COMPILER),
        *STRICT,
        "-fsyntax-only",
        *headers,
        *INCLUDES,
        str(SOURCE / "src" / "engine_tensorrt.cpp"),
    ]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SDK with TensorRT alone, and a main program."""
    built = tmp_path_factory.mktemp("sdk") / "run"
    names = [f"{name}.cpp" for name in ("detector", "json", "manifest", "onnx_file", "engine_tensorrt")]
    sources = [SOURCE / "src" / name for name in names] + [CSRC / f"{name}.cpp" for name in KERNELS.split()]
    headers = ["-isystem", str(PLAYED), *INCLUDES, "-DBOXWRIGHT_WITH_TENSORRT", "-ffp-contract=off"]
    command = [str(COMPILER), *STRICT, "-O0", "-fsanitize=address,undefined", *headers, str(PLAYED / "main.cpp")]
    subprocess.run([*command, *map(str, sources), "-o", str(built)], check=True)
    return built


def _engine(folder: Path) -> Path:
    path = write_engine(folder / "m.engine", engine_description())
    path.write_bytes(b"engine of the player")
    return path


def _run(program: Path, engine: Path, *levels: int, conf: str = "", **played: str) -> list[str]:
    command = [str(program), str(engine), conf, *map(str, levels)]
    finished = subprocess.run(command, env=os.environ | played, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    *lines, in_use = finished.stdout.splitlines()
    assert in_use == "in use: 0"
    return lines


@pytest.mark.parametrize("integrated", ["0", "1"])
def test_it_detects(integrated: str, program: Path, tmp_path: Path) -> None:
    engine = _engine(tmp_path)
    found = _run(program, engine, 200, 10, 250, 200, PLAYED_INTEGRATED=integrated)
    assert found == ["bright 0 0 40 24 0.784;", "", "bright 0 0 40 24 0.980;", "bright 0 0 40 24 0.784;"]
    assert _run(program, engine, 200, 250, conf="0.9", PLAYED_INTEGRATED=integrated) == ["", "bright 0 0 40 24 0.980;"]


def test_the_manifest_of_the_onnx_file_beside_it(program: Path, tmp_path: Path) -> None:
    engine = _engine(tmp_path)
    sidecar_path(engine).unlink()
    (answer,) = _run(program, engine)
    assert answer.startswith(f"error: {engine}: expected {engine}.manifest.json beside it, or the .onnx")
    model = read_onnx(save_colour_cells(tmp_path / "other.onnx"))
    set_manifest(model, make_manifest())
    write_onnx(model, tmp_path / "m.onnx")
    assert _run(program, engine, 200) == ["bright 0 0 40 24 0.784;"]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "driver",
            "expected a working NVIDIA GPU for TensorRT, got CUDA driver version is insufficient; see",
        ),
        ("memory", "GPU memory: expected room for a tensor, got out of memory; end other programs"),
        ("context", "expected enough GPU memory"),
        ("run", "expected a run on TensorRT, got Error Code 1: Cuda Runtime (an illegal memory access)"),
    ],
)
def test_faults_of_the_gpu(fault: str, words: str, program: Path, tmp_path: Path) -> None:
    (answer,) = _run(program, _engine(tmp_path), 200, PLAYED_FAULT=fault)
    assert answer.startswith("error: ") and words in answer


def test_files_that_are_no_engine(program: Path, tmp_path: Path) -> None:
    engine = _engine(tmp_path)
    engine.write_bytes(b"something else")
    (answer,) = _run(program, engine)
    assert "got Error Code 1: Serialization (Magic tag does not match); run here: boxwright export m.onnx" in answer
    sidecar_path(engine).write_text("{")
    assert "a JSON document" in _run(program, engine)[0]
    (answer,) = _run(program, save_colour_cells(tmp_path / "m.onnx"))
    assert "expected tensorrt, which this library has" in answer
