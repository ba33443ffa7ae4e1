"""CPU features and GPUs, read from what Linux and nvidia-smi print."""

import os
import subprocess
from pathlib import Path

import pytest

from boxwright.core import machine
from boxwright.core.machine import describe_machine, parse_cpu_features, parse_gpus

SAPPHIRE_RAPIDS = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
flags\t\t: fpu avx avx2 avx512f avx512bw avx512vl avx512_bf16 avx512_vnni avx_vnni amx_bf16 amx_tile amx_int8
"""
HASWELL = "model name : Intel(R) Core(TM) i5-4590\nflags : fpu sse4_2 avx avx2 fma\n"
KNIGHTS_LANDING = "flags : avx avx2 avx512f avx512pf avx512er avx512cd\n"  # AVX-512 without byte and short-vector forms
ORIN = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes asimdhp cpuid asimddp\nCPU part\t: 0xd42\n"
GRAVITON3 = "Features : fp asimd asimdhp asimddp sve i8mm bf16\n"


@pytest.mark.parametrize(
    ("cpuinfo", "architecture", "present"),
    [
        (
            SAPPHIRE_RAPIDS,
            "x86_64",
            {"avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8"},
        ),
        (HASWELL, "x86_64", {"avx2"}),
        (HASWELL, "AMD64", {"avx2"}),
        (KNIGHTS_LANDING, "x86_64", {"avx2"}),
        (ORIN, "aarch64", {"neon", "fp16", "dotprod"}),
        (GRAVITON3, "aarch64", {"neon", "fp16", "dotprod", "i8mm", "bf16", "sve"}),
    ],
)
def test_cpu_features(cpuinfo: str, architecture: str, present: set[str]) -> None:
    features = parse_cpu_features(cpuinfo, architecture)
    assert {name for name, is_there in features.items() if is_there} == present


@pytest.mark.parametrize(("cpuinfo", "architecture"), [("", "x86_64"), (HASWELL, "riscv64"), ("flags", "x86_64")])
def test_unknown_cpu_features_are_not_claimed_absent(cpuinfo: str, architecture: str) -> None:
    assert parse_cpu_features(cpuinfo, architecture) == {}


def test_gpus_of_nvidia_smi() -> None:
    table = "NVIDIA H100 80GB HBM3, 580.95.05, 81559, 9.0\nNVIDIA GB10, 580.95.05, [N/A], 12.1\n\n"
    first, second = parse_gpus(table)
    assert (first.name, first.memory_mb, first.compute_capability) == ("NVIDIA H100 80GB HBM3", 81559, "9.0")
    assert (second.name, second.memory_mb) == ("NVIDIA GB10", 0)
    assert parse_gpus("") == ()


@pytest.mark.parametrize(
    ("script", "num_gpus", "problem"),
    [
        ("echo 'NVIDIA L4, 550.1, 23034, 8.9'", 1, None),
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", 0, "Driver/library"),
        ("echo 'something else entirely'", 0, "ValueError"),
        ("exit 9", 0, "exit status 9"),
    ],
)
def test_nvidia_smi_is_believed_or_quoted(
    script: str, num_gpus: int, problem: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    described = describe_machine()
    assert len(described.gpus) == num_gpus
    assert (described.gpu_problem is None) == (problem is None)
    assert problem is None or problem in str(described.gpu_problem)


def test_a_hanging_nvidia_smi_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(machine.shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(machine.subprocess, "run", hang)
    assert "TimeoutExpired" in str(describe_machine().gpu_problem)


def test_this_machine() -> None:
    described = describe_machine()
    assert described.num_cores >= 1
    assert described.cpu_name
    assert described.memory_mb is None or described.memory_mb > 100
    assert described.to_jsonable()["architecture"] == described.architecture
