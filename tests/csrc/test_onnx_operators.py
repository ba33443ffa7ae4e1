"""The list of operators that exports are held to, against the real parser of TensorRT 8.5 where its library is here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tensorrt_installations import cuda_include_dir, libraries
from tensorrt_operators import OPERATORS

LIBRARIES = libraries("libnvonnxparser.so.8")
CUDA_INCLUDE_DIR = cuda_include_dir()
# It has importers for these, and denies it: ONNX Runtime shall not ask for them, which cannot take outputs whose size
# depends on the data. Source: ModelImporter::supportsOperator of github.com/onnx/onnx-tensorrt, branch 8.5-GA.
DENIED = {"NonMaxSuppression", "NonZero", "RoiAlign"}


@pytest.mark.skipif(
    not LIBRARIES or CUDA_INCLUDE_DIR is None or shutil.which("g++") is None,
    reason="no ONNX parser of TensorRT 8 in BOXWRIGHT_TENSORRT_ROOT, no CUDA headers or no C++ compiler",
)
def test_the_parser_has_the_operators_of_the_list(tmp_path: Path) -> None:
    library = LIBRARIES[0]
    program = tmp_path / "onnx_operators"
    source = Path(__file__).with_name("onnx_operators.cpp")
    headers = ["-isystem", str(library.parents[1] / "include"), "-isystem", str(CUDA_INCLUDE_DIR)]
    strict = ["-Wall", "-Wextra", "-Werror", "-Wno-deprecated-declarations"]
    subprocess.run(["g++", "-std=c++17", *strict, *headers, str(source), "-ldl", "-o", str(program)], check=True)
    listed = set(OPERATORS["8.5"])
    asked = sorted({name for version in ("8.5", "8.6", "10.0") for name in OPERATORS[version]} | {"DecodeNMS"})
    environment = os.environ | {"LD_LIBRARY_PATH": f"{library.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    finished = subprocess.run(
        [program, library], input="\n".join(asked), env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    answers = dict(line.split() for line in finished.stdout.splitlines())
    assert answers.keys() == set(asked)
    assert {name for name, answer in answers.items() if answer == "1"} == listed - DENIED
