"""The CUDA kernels compile for the GPUs that they are meant for, without a warning."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from decode_nms_cuda_library import CSRC, ENTRY, INCLUDES

NVCC = shutil.which("nvcc")
# Jetson Xavier and Orin, Ada, Hopper, Blackwell; each toolkit knows some of them.
WANTED = (72, 87, 89, 90, 100, 120)
pytestmark = pytest.mark.skipif(NVCC is None, reason="no nvcc on the PATH, so no CUDA can be compiled here")


def architectures() -> list[int]:
    assert NVCC is not None
    listed = subprocess.run([NVCC, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout.split()
    known = [int(name.removeprefix("compute_")) for name in listed if name.removeprefix("compute_").isdigit()]
    return [number for number in WANTED if number in known]


def test_the_kernels_compile_for_every_gpu_that_this_toolkit_knows(tmp_path: Path) -> None:
    assert NVCC is not None
    found = architectures()
    assert found, "this toolkit knows none of the GPUs wanted"
    targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in found]
    strict = ["--fmad=false", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror,-fPIC"]
    threads = f"--threads={min(len(found), os.cpu_count() or 1)}"
    built = tmp_path / "decode_nms_cuda.o"
    command = [NVCC, "-std=c++17", "-O3", *strict, *targets, threads, "-c", str(CSRC / "decode_nms_cuda.cu")]
    finished = subprocess.run([*command, "-o", str(built)], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert built.stat().st_size > 0
    listing = shutil.which("cuobjdump")
    if listing is not None:  # the object has code for each, not for fewer
        text = subprocess.run([listing, "--list-elf", str(built)], check=True, capture_output=True, text=True).stdout
        assert [number for number in found if f"sm_{number}" in text] == found


def test_the_library_of_the_gpu_tests_compiles(tmp_path: Path) -> None:
    assert NVCC is not None
    strict = ["-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra,-Werror,-fPIC", *INCLUDES]
    command = [NVCC, "-std=c++17", *strict, "-c", str(ENTRY / "decode_nms_cuda_device.cu")]
    finished = subprocess.run([*command, "-o", str(tmp_path / "entry.o")], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
