"""The state of the machine while it measures: load, frequency, heat, and whether something held it back."""

from __future__ import annotations

import os
from pathlib import Path

from boxwright.bench.results import Conditions
from boxwright.bench.sensors import (
    kernel_numbers,
    kernel_texts,
    nvidia_gpu_state,
    power_mode,
    throttle_events,
    throttling_devices,
)

_CPU = "sys/devices/system/cpu/cpu[0-9]*"
# Above this share of the cores, others were running already when the measurement began.
_BUSY_LOAD_SHARE = 0.5
_FREQUENCY_DROP = 0.10
_STEAL_SHARE = 0.01
_TICKS_PER_SECOND = 100  # of /proc/stat, on every Linux that the kernel builds by default
_STEAL_COLUMN = 8
_HOTTEST_MILLIDEGREES = 150_000


def read_conditions(root: Path = Path("/")) -> Conditions:
    """Look at the machine now.

    Args:
        root: below which the kernel shows `sys` and `proc`; a test's own folder in tests.
    """
    kilohertz = list(kernel_numbers(root, f"{_CPU}/cpufreq/scaling_cur_freq"))
    frequencies = [value / 1000 for value in kilohertz] or _frequencies_of_cpuinfo(root)
    governors = sorted(set(kernel_texts(root, f"{_CPU}/cpufreq/scaling_governor")))
    # Some zones report nonsense (negative, or absolute zero) where a sensor is off.
    zones = kernel_numbers(root, "sys/class/thermal/thermal_zone*/temp")
    temperatures = [milli / 1000 for milli in zones if 0 < milli < _HOTTEST_MILLIDEGREES]
    gpu = nvidia_gpu_state(root)
    return Conditions(
        load_average=_load_average(root),
        cpu_mhz=round(sum(frequencies) / len(frequencies), 1) if frequencies else None,
        governor=", ".join(governors) or None,
        temperature_c=round(max(temperatures), 1) if temperatures else None,
        throttle_count=throttle_events(root),
        throttled_by=(*throttling_devices(root), *gpu.throttled_by),
        power_mode=power_mode(root),
        gpu_mhz=gpu.mhz,
        gpu_temperature_c=gpu.temperature_c,
        steal_s=_steal_s(root),
    )


def find_disturbances(before: Conditions, after: Conditions, *, num_cores: int, seconds: float) -> tuple[str, ...]:
    """What may have disturbed a measurement, a sentence each; empty where nothing shows.

    Args:
        before: the conditions when it began.
        after: when it ended.
        num_cores: of the machine.
        seconds: that it took.
    """
    found = []
    if before.load_average is not None and before.load_average > _BUSY_LOAD_SHARE * num_cores:
        found.append(
            f"the machine was busy when the run began: load average {before.load_average:.1f}, {num_cores} cores"
        )
    if before.throttle_count is not None and (after.throttle_count or 0) > before.throttle_count:
        found.append("the machine was slowed down for its heat or current during the run")
    held_back = sorted({*before.throttled_by, *after.throttled_by})
    if held_back:
        found.append(f"clocks were held down by {', '.join(held_back)}")
    if before.power_mode != after.power_mode:
        found.append(f"the power mode changed from {before.power_mode} to {after.power_mode}")
    for name, earlier, later in (
        ("CPU", before.cpu_mhz, after.cpu_mhz),
        ("GPU", before.gpu_mhz, after.gpu_mhz),
    ):
        if earlier and later and later < (1 - _FREQUENCY_DROP) * earlier:
            found.append(f"the {name}'s frequency fell from {earlier:.0f} to {later:.0f} MHz")
    if before.steal_s is not None and after.steal_s is not None and seconds > 0:
        share = (after.steal_s - before.steal_s) / (seconds * num_cores)
        if share > _STEAL_SHARE:
            found.append(f"the host of this virtual machine took {share:.0%} of its CPU time")
    if before.governor == "powersave":
        found.append("the CPU's frequency governor is 'powersave'")
    return tuple(found)


def _load_average(root: Path) -> float | None:
    try:
        return float((root / "proc/loadavg").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return round(os.getloadavg()[0], 2) if root == Path("/") and hasattr(os, "getloadavg") else None


def _steal_s(root: Path) -> float | None:
    try:
        first_line = (root / "proc/stat").read_text().partition("\n")[0]
        return int(first_line.split()[_STEAL_COLUMN]) / _TICKS_PER_SECOND
    except (OSError, ValueError, IndexError):
        return None


def _frequencies_of_cpuinfo(root: Path) -> list[float]:
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
        return [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError):
        return []
