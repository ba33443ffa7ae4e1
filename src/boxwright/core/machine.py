"""What this machine is: its CPU with the instructions that matter for inference, its memory, its NVIDIA GPUs."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Feature -> the words that Linux has for it in /proc/cpuinfo; all of them must be there.
_X86_FEATURES: Mapping[str, tuple[str, ...]] = {
    "avx2": ("avx2",),
    "avx512": ("avx512f", "avx512bw", "avx512vl"),
    "avx512_vnni": ("avx512_vnni",),
    "avx512_bf16": ("avx512_bf16",),
    "avx_vnni": ("avx_vnni",),
    "amx_bf16": ("amx_tile", "amx_bf16"),
    "amx_int8": ("amx_tile", "amx_int8"),
}
_ARM_FEATURES: Mapping[str, tuple[str, ...]] = {
    "neon": ("asimd",),
    "fp16": ("asimdhp",),
    "dotprod": ("asimddp",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "sve": ("sve",),
}
_FEATURES_OF_ARCHITECTURE = {"x86_64": _X86_FEATURES, "amd64": _X86_FEATURES, "aarch64": _ARM_FEATURES}
_GPU_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")
_NVIDIA_SMI_TIMEOUT_S = 20


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU, as `nvidia-smi` names it.

    Attributes:
        name: e.g. "NVIDIA L4".
        driver_version: e.g. "580.95".
        memory_mb: of its own.
        compute_capability: e.g. "8.9".
    """

    name: str
    driver_version: str
    memory_mb: int
    compute_capability: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a measurement should name, and what decides how fast INT8 can be.

    Attributes:
        system: operating system and its release.
        python: version of this interpreter.
        architecture: e.g. "x86_64".
        cpu_name: as the CPU or its board calls itself.
        num_cores: logical cores that this process may use.
        memory_mb: of the whole machine; None where it cannot be read.
        cpu_features: whether the CPU has each instruction set that matters on its architecture; empty where unknown.
        gpus: the NVIDIA GPUs.
        gpu_problem: why `nvidia-smi`, which is there, named none; None where nothing is wrong.
    """

    system: str
    python: str
    architecture: str
    cpu_name: str
    num_cores: int
    memory_mb: int | None
    cpu_features: dict[str, bool]
    gpus: tuple[Gpu, ...]
    gpu_problem: str | None = None

    def to_jsonable(self) -> dict[str, Any]:
        """One JSON object with the attributes."""
        return asdict(self)


def describe_machine() -> Machine:
    """Look at the machine that this process runs on; takes as long as one call of `nvidia-smi`."""
    cpuinfo = _read_text("/proc/cpuinfo")
    architecture = platform.machine().lower()
    gpus, gpu_problem = _find_gpus()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        architecture=architecture,
        cpu_name=_cpu_name(cpuinfo),
        num_cores=num_usable_cores(),
        memory_mb=_memory_mb(),
        cpu_features=parse_cpu_features(cpuinfo, architecture),
        gpus=gpus,
        gpu_problem=gpu_problem,
    )


def parse_cpu_features(cpuinfo: str, architecture: str) -> dict[str, bool]:
    """Read which instruction sets a CPU has.

    Args:
        cpuinfo: text of Linux's /proc/cpuinfo.
        architecture: as `platform.machine()` names it.

    Returns:
        Whether each feature that matters is there; empty for an unknown architecture or a text that names none.
    """
    words = set((_cpuinfo_field(cpuinfo, "flags") or _cpuinfo_field(cpuinfo, "Features") or "").split())
    if not words:
        return {}
    features = _FEATURES_OF_ARCHITECTURE.get(architecture.lower(), {})
    return {feature: words.issuperset(needed) for feature, needed in features.items()}


def parse_gpus(table: str) -> tuple[Gpu, ...]:
    """Read the GPUs from the table that `nvidia-smi --format=csv,noheader,nounits` prints."""
    rows = ([cell.strip() for cell in line.split(",")] for line in table.splitlines() if line.strip())
    return tuple(
        Gpu(
            name=name,
            driver_version=driver_version,
            memory_mb=int(memory_mb) if memory_mb.isdigit() else 0,  # "[N/A]" where CPU and GPU share it
            compute_capability=compute_capability,
        )
        for name, driver_version, memory_mb, compute_capability in rows
    )


def _find_gpus() -> tuple[tuple[Gpu, ...], str | None]:
    """Ask `nvidia-smi`; without it there are no GPUs, and nothing is wrong with that."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return (), None
    command = [program, "--query-gpu=" + ",".join(_GPU_FIELDS), "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=False)
        if answer.returncode != 0:
            return (), " ".join((answer.stdout + answer.stderr).split()) or f"exit status {answer.returncode}"
        return parse_gpus(answer.stdout), None
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        return (), f"{type(error).__name__}: {error}"


def _cpu_name(cpuinfo: str) -> str:
    """The model's name; ARM boards name themselves in the device tree."""
    board = _read_text("/proc/device-tree/model").strip("\0 \n")
    return _cpuinfo_field(cpuinfo, "model name") or board or platform.processor() or platform.machine()


def _cpuinfo_field(cpuinfo: str, field: str) -> str | None:
    """The value of the first line `field : value`."""
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip() == field:
            return value.strip()
    return None


def num_usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_mb() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (ValueError, OSError, AttributeError):
        return None


def _read_text(path: str) -> str:
    """The text of a file of the kernel's, empty where the kernel has none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
