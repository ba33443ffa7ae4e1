"""The C++ SDK reads numbers alike with a compiler that has no `std::from_chars` for them, as on JetPack 5."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "sdk" / "cpp"
MAIN = r"""
#include <clocale>
#include <cstdio>
#include <iostream>
#include <iterator>
#include "boxwright/detector.hpp"
#include "json.h"
int main() {
    std::setlocale(LC_ALL, "");
    const std::string text{std::istreambuf_iterator<char>(std::cin), {}};
    try {
        for (const auto& item : boxwright::json::parse(text).items) { std::printf("%a\n", item.number); }
    } catch (const boxwright::Error& error) { std::printf("error\n"); }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("json")
    (folder / "main.cpp").write_text(MAIN)
    includes = [f"-I{SOURCE / 'include'}", f"-I{SOURCE / 'src'}"]
    sources = ["main.cpp", str(SOURCE / "src" / "json.cpp")]
    subprocess.run(
        [compiler, "-std=c++17", "-Wall", "-Wextra", "-DBOXWRIGHT_NUMBERS_BY_STREAM", *includes, *sources, "-o", "run"],
        cwd=folder,
        check=True,
    )
    return folder / "run"


def _read(program: Path, text: str) -> list[str]:
    return subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True).stdout.splitlines()


def test_numbers_are_read_to_the_bit(program: Path) -> None:
    generator = random.Random(0)
    numbers = [0.0, -0.0, 1.0, 114.0, 1e-300, 5e-324, 1.7e308, 0.1, 1 / 255, 123456789012345.0]
    numbers += [generator.uniform(-1, 1) * 10.0 ** generator.randint(-30, 30) for _ in range(500)]
    read = _read(program, "[" + ", ".join(map(repr, numbers)) + "]")
    assert [float.fromhex(line) for line in read] == numbers


@pytest.mark.parametrize("text", ["[1-2]", "[1.2.3]", "[--1]", "[1e]", "[-]", "[1,2", "[0x10]"])
def test_what_is_no_number_is_refused(program: Path, text: str) -> None:
    assert _read(program, text) == ["error"]
