"""What the kernel and NVIDIA's driver say of heat, clocks and power, also on a Jetson.

Sources: Linux, Documentation/admin-guide/pm and Documentation/driver-api/thermal; NVIDIA Jetson Linux Developer Guide,
"Platform Power and Performance"; nvidia-smi --help-query-gpu.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_NVIDIA_SMI_TIMEOUT_S = 20
# Counters of being slowed down: x86's for heat, by core and by package, and a Jetson's for current.
_THROTTLE_COUNTERS = (
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count",
    "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/package_throttle_count",
    "sys/class/hwmon/hwmon*/oc*_event_cnt",
)
# Cooling devices that slow something down, by their types; fans do not. A Jetson names its alerts cpu-throttle-alert.
_SLOWING_DEVICE = re.compile(r"^(cpufreq-|thermal-cpufreq|thermal-devfreq|devfreq-|Processor$|.*throttle-alert$)")
# A Jetson's GPU, as its generations name it: 57000000.gpu, 17000000.gv11b, 17000000.ga10b, 17000000.gpu.
_JETSON_GPU_FREQUENCY = "sys/class/devfreq/*.g[pvab]*/cur_freq"
_JETSON_POWER_MODE = re.compile(r"pmode:0*(\d+)")
_JETSON_MODE_NAME = r"<\s*POWER_MODEL\s+ID=0*{}\s+NAME=(\S+)\s*>"
# Reasons of NVIDIA's driver that are none of concern: idle, and clocks that the user set himself.
_GPU_QUERY = {
    "clocks.sm": "",
    "temperature.gpu": "",
    "clocks_throttle_reasons.sw_power_cap": "the GPU's power limit",
    "clocks_throttle_reasons.sw_thermal_slowdown": "the GPU's heat",
    "clocks_throttle_reasons.hw_thermal_slowdown": "the GPU's heat",
    "clocks_throttle_reasons.hw_power_brake_slowdown": "the GPU's power brake",
}


@dataclass(frozen=True, kw_only=True)
class GpuState:
    """Of an NVIDIA GPU, the slowest and hottest where there are several; None where it does not say."""

    mhz: float | None = None
    temperature_c: float | None = None
    throttled_by: tuple[str, ...] = ()


def throttle_events(root: Path) -> int | None:
    """How often the machine has been slowed down since its start; None where it does not count."""
    counts = [count for pattern in _THROTTLE_COUNTERS for count in kernel_numbers(root, pattern)]
    return int(sum(counts)) if counts else None


def throttling_devices(root: Path) -> tuple[str, ...]:
    """Types of the kernel's cooling devices that slow something down now, each once."""
    found = set()
    for folder in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        kind = next(iter(kernel_texts(folder, "type")), "")
        if _SLOWING_DEVICE.match(kind) and any(state > 0 for state in kernel_numbers(folder, "cur_state")):
            found.add(kind)
    return tuple(sorted(found))


def power_mode(root: Path) -> str | None:
    """A Jetson's mode with its name, e.g. "0 (MAXN)"; else the platform's profile, e.g. "balanced"."""
    status = next(iter(kernel_texts(root, "var/lib/nvpmodel/status")), "")
    mode = _JETSON_POWER_MODE.search(status)
    if mode is None:
        return next(iter(kernel_texts(root, "sys/firmware/acpi/platform_profile")), None)
    catalogue = next(iter(kernel_texts(root, "etc/nvpmodel.conf")), "")
    name = re.search(_JETSON_MODE_NAME.format(mode[1]), catalogue)
    return f"{mode[1]} ({name[1]})" if name else mode[1]


def nvidia_gpu_state(root: Path) -> GpuState:
    """Clocks, heat and what holds the clocks down; of a Jetson from the kernel, where nvidia-smi knows little."""
    jetson = [hertz / 1e6 for hertz in kernel_numbers(root, _JETSON_GPU_FREQUENCY)]
    if jetson:
        return GpuState(mhz=round(min(jetson), 1), temperature_c=_jetson_gpu_temperature(root))
    program = shutil.which("nvidia-smi")
    if program is None or root != Path("/"):
        return GpuState()
    command = [program, "--query-gpu=" + ",".join(_GPU_QUERY), "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return GpuState()
    return parse_gpu_state(answer.stdout) if answer.returncode == 0 else GpuState()


def parse_gpu_state(table: str) -> GpuState:
    """Read what nvidia-smi answers, a line for each GPU; what it does not know ("[N/A]") is left out."""
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines()]
    rows = [row for row in rows if len(row) == len(_GPU_QUERY)]
    clocks = [number for row in rows if (number := _number(row[0])) is not None]
    temperatures = [number for row in rows if (number := _number(row[1])) is not None]
    reasons = {
        reason for row in rows for reason, cell in zip(_GPU_QUERY.values(), row, strict=True) if cell == "Active"
    }
    return GpuState(
        mhz=min(clocks, default=None),
        temperature_c=max(temperatures, default=None),
        throttled_by=tuple(sorted(reasons)),
    )


def kernel_texts(root: Path, pattern: str) -> Iterable[str]:
    """What the files of that pattern hold, stripped; those that cannot be read are left out."""
    for path in sorted(root.glob(pattern)):
        try:
            yield path.read_text(errors="replace").strip()
        except OSError:  # a sensor that is switched off
            continue


def kernel_numbers(root: Path, pattern: str) -> Iterable[float]:
    """The numbers among them."""
    for text in kernel_texts(root, pattern):
        number = _number(text)
        if number is not None:
            yield number


def _jetson_gpu_temperature(root: Path) -> float | None:
    """Of the zone that is named after the GPU (GPU-therm, gpu-thermal)."""
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        if next(iter(kernel_texts(zone, "type")), "").lower().startswith("gpu"):
            return next((milli / 1000 for milli in kernel_numbers(zone, "temp") if milli > 0), None)
    return None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
