"""The C++ tests: under AddressSanitizer and UBSan, and for ARM64 under qemu, where the tools for it are installed."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boxwright.core import kernels
from boxwright.core.decode_nms_attributes import DecodeNmsAttributes
from decode_nms_case_file import write_case_file
from decode_nms_cases import Case

pytestmark = pytest.mark.xdist_group("compiled")  # once for each processor

TESTS = Path(__file__).resolve().parents[1]
FUZZ_CORPUS = TESTS / "csrc" / "fuzz_corpus"
# Beyond this the reader of a sanitized build, and qemu, take seconds a case and find nothing new.
MOST_NUMBERS = 20_000


def tool(name: str) -> str:
    """The path of a program, from this environment or the system's."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def build(directory: Path, *options: str) -> str:
    """Build kernels_test; returns its path."""
    cmake = tool("cmake")
    run(
        cmake, "-S", str(TESTS.parent), "-B", str(directory), "-DBOXWRIGHT_PYTHON=OFF", "-DBOXWRIGHT_TESTS=ON", *options
    )
    run(cmake, "--build", str(directory), "--target", "kernels_test")
    return str(directory / "kernels_test")


def can_link_sanitizers(directory: Path) -> bool:
    source = directory / "empty.cpp"
    source.write_text("int main() { return 0; }\n")
    command = ["c++", "-fsanitize=address,undefined", str(source), "-o", str(directory / "empty")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def write_corpus(file: Path, step: int) -> int:
    """Write every so many of the kept cases, with the results of this processor; returns how many."""
    if not kernels.instruction_sets():
        pytest.skip("the compiled kernels are not built")
    lines = (TESTS / "core" / "decode_nms_corpus.jsonl").read_text().splitlines()
    cases = [Case.from_json(line) for line in lines]
    chosen = [case for case in cases if case.num_logits <= MOST_NUMBERS][::step]
    calls = (case.inputs() for case in chosen)
    write_case_file(file, ((inputs, kernels.decode_nms(**inputs)) for inputs in calls))
    return len(chosen)


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of kernels_test: what the fuzzers found worth trying, and some of the kept cases."""
    file = tmp_path_factory.mktemp("cases") / "cases.bin"
    assert write_corpus(file, step=6) > 350
    corpora = {name: FUZZ_CORPUS / f"{name}.bin" for name in ("decode_nms", "letterbox")}
    return [argument for kind, path in {**corpora, "cases": file}.items() for argument in (kind, str(path))]


@pytest.fixture(scope="module")
def sanitized_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    tool("c++")
    directory = tmp_path_factory.mktemp("sanitized")
    if not can_link_sanitizers(directory):
        pytest.skip("the C++ compiler has no AddressSanitizer")
    options = ["-DBOXWRIGHT_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1"]
    return build(directory / "build", *options)


@pytest.fixture(scope="module")
def sanitized_output(sanitized_program: str, replayed: list[str]) -> str:
    return run(sanitized_program, *replayed)


@pytest.fixture(scope="module")
def arm_command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The emulator and the program for it."""
    compiler, emulator = tool("aarch64-linux-gnu-g++"), tool("qemu-aarch64")
    program = build(
        tmp_path_factory.mktemp("arm"),
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )
    return [emulator, program]


@pytest.fixture(scope="module")
def arm_output(arm_command: list[str], replayed: list[str]) -> str:
    return run(*arm_command, *replayed)


def lines_of(output: str, start: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith(start)]


def check_replayed(output: str) -> None:
    decode_nms, letterbox, cases = lines_of(output, "replayed")
    assert int(decode_nms.split()[1]) > 1000
    assert int(letterbox.split()[1]) > 80
    assert int(cases.split()[1]) > 350
    assert cases.endswith(", 0 differ")
    assert ", 0 failures" in output


def test_with_sanitizers(sanitized_output: str) -> None:
    """Every instruction set of this processor."""
    expected = "instruction sets: " + " ".join(kernels.instruction_sets())
    assert lines_of(sanitized_output, "instruction sets:") == [expected]
    check_replayed(sanitized_output)


def test_for_arm64(arm_output: str) -> None:
    assert lines_of(arm_output, "instruction sets:") == ["instruction sets: neon plain"]
    check_replayed(arm_output)


def test_processors_give_the_same_bits(sanitized_output: str, arm_output: str) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("this is no other processor than the emulated one")
    digest = lines_of(arm_output, "digest:")
    assert len(digest) == 1
    assert lines_of(sanitized_output, "digest:") == digest


@pytest.mark.full
def test_the_whole_corpus_with_sanitizers(sanitized_program: str, tmp_path: Path) -> None:
    num_cases = write_corpus(tmp_path / "cases.bin", step=1)
    output = run(sanitized_program, "--replay-only", "cases", str(tmp_path / "cases.bin"))
    assert f"replayed {num_cases} cases, 0 differ" in output
    assert num_cases > 2000


@pytest.mark.full
def test_the_whole_corpus_for_arm64(arm_command: list[str], tmp_path: Path) -> None:
    num_cases = write_corpus(tmp_path / "cases.bin", step=1)
    output = run(*arm_command, "--replay-only", "cases", str(tmp_path / "cases.bin"))
    assert f"replayed {num_cases} cases, 0 differ" in output
    assert num_cases > 2000


def test_a_wrong_result_and_a_cut_file_are_found(sanitized_program: str, tmp_path: Path) -> None:
    inputs: dict[str, Any] = {
        "box_regression": np.array([[[0, 0, 9, 9], [20, 0, 29, 9]]], np.float32),
        "class_logits": np.array([[[0.5], [0.25]]], np.float32),
        "attributes": DecodeNmsAttributes(box_coding="xyxy", score_activation="none", max_detections=3),
        "score_threshold": 0.1,
        "iou_threshold": 0.5,
    }
    output = kernels.decode_nms(**inputs)
    write_case_file(tmp_path / "right", [(inputs, output)])
    write_case_file(tmp_path / "wrong", [(inputs, output._replace(scores=output.scores[:, ::-1]))])
    (tmp_path / "cut").write_bytes((tmp_path / "right").read_bytes()[:-1])
    for name, status, message in [
        ("right", 0, "1 cases, 0 differ"),
        ("wrong", 1, "differs"),
        ("cut", 1, "ends within"),
    ]:
        command = [sanitized_program, "--replay-only", "cases", str(tmp_path / name)]
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert result.returncode == status
        assert message in result.stdout
