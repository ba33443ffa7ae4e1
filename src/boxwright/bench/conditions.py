"""The state of the machine while it measures: load, frequency, heat, and whether something held it back."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from boxwright.bench.results import Conditions

_CPU = "devices/system/cpu"
# Above this share of the cores, others were running already when the measurement began.
_BUSY_LOAD_SHARE = 0.5
_FREQUENCY_DROP = 0.10
_STEAL_SHARE = 0.01
_TICKS_PER_SECOND = 100  # of /proc/stat, on every Linux that the kernel builds by default
_STEAL_COLUMN = 8


def read_conditions(sys_root: Path = Path("/sys"), proc_root: Path = Path("/proc")) -> Conditions:
    """Look at the machine now.

    Args:
        sys_root: where the kernel (also a Jetson's) shows frequencies, governors and temperatures.
        proc_root: where it shows load and times.
    """
    frequencies = [kilohertz / 1000 for kilohertz in _numbers(sys_root, f"{_CPU}/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    governors = sorted(set(_texts(sys_root, f"{_CPU}/cpu[0-9]*/cpufreq/scaling_governor")))
    # Some zones report nonsense (negative, or absolute zero) where a sensor is off.
    zones = [milli / 1000 for milli in _numbers(sys_root, "class/thermal/thermal_zone*/temp") if 0 < milli < 150_000]
    throttles = list(_numbers(sys_root, f"{_CPU}/cpu[0-9]*/thermal_throttle/core_throttle_count"))
    frequencies = frequencies or _frequencies_of_cpuinfo(proc_root)
    return Conditions(
        load_average=_load_average(proc_root),
        cpu_mhz=round(sum(frequencies) / len(frequencies), 1) if frequencies else None,
        governor=", ".join(governors) or None,
        temperature_c=round(max(zones), 1) if zones else None,
        throttle_count=int(sum(throttles)) if throttles else None,
        steal_s=_steal_s(proc_root),
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
    if _has_risen(before.throttle_count, after.throttle_count):
        found.append("the CPU was slowed down for its heat during the run")
    if before.cpu_mhz and after.cpu_mhz and after.cpu_mhz < (1 - _FREQUENCY_DROP) * before.cpu_mhz:
        found.append(f"the CPU's frequency fell from {before.cpu_mhz:.0f} to {after.cpu_mhz:.0f} MHz")
    if before.steal_s is not None and after.steal_s is not None and seconds > 0:
        share = (after.steal_s - before.steal_s) / (seconds * num_cores)
        if share > _STEAL_SHARE:
            found.append(f"the host of this virtual machine took {share:.0%} of its CPU time")
    if before.governor == "powersave":
        found.append("the CPU's frequency governor is 'powersave'")
    return tuple(found)


def _has_risen(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def _load_average(proc_root: Path) -> float | None:
    try:
        return float((proc_root / "loadavg").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return round(os.getloadavg()[0], 2) if proc_root == Path("/proc") and hasattr(os, "getloadavg") else None


def _steal_s(proc_root: Path) -> float | None:
    try:
        first_line = (proc_root / "stat").read_text().partition("\n")[0]
        return int(first_line.split()[_STEAL_COLUMN]) / _TICKS_PER_SECOND
    except (OSError, ValueError, IndexError):
        return None


def _frequencies_of_cpuinfo(proc_root: Path) -> list[float]:
    try:
        lines = (proc_root / "cpuinfo").read_text(errors="replace").splitlines()
        return [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError):
        return []


def _texts(root: Path, pattern: str) -> Iterable[str]:
    for path in sorted(root.glob(pattern)):
        try:
            yield path.read_text().strip()
        except OSError:  # a sensor that is switched off
            continue


def _numbers(root: Path, pattern: str) -> Iterable[float]:
    for text in _texts(root, pattern):
        try:
            yield float(text)
        except ValueError:
            continue
