"""What the machine says of itself, read from folders that look like its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxwright.bench.conditions import find_disturbances, read_conditions
from boxwright.bench.results import Conditions
from boxwright.bench.sensors import GpuState, parse_gpu_state

LAPTOP = {
    "proc/loadavg": "0.42 0.30 0.20 1/300 1234\n",
    "proc/stat": "cpu  100 0 50 900 5 0 1 250 0 0\ncpu0 1 2 3\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2600000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "performance\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4\n",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "2\n",
    "sys/class/thermal/thermal_zone0/temp": "51000\n",
    "sys/class/thermal/thermal_zone1/temp": "63500\n",
    "sys/class/thermal/thermal_zone2/temp": "-273150\n",  # a sensor that is off
    "sys/class/thermal/cooling_device0/type": "Processor\n",
    "sys/class/thermal/cooling_device0/cur_state": "0\n",
    "sys/class/thermal/cooling_device1/type": "Fan\n",
    "sys/class/thermal/cooling_device1/cur_state": "1\n",
    "sys/firmware/acpi/platform_profile": "balanced\n",
}
JETSON = {
    "proc/loadavg": "0.10 0.10 0.10 1/300 1234\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
    "sys/class/devfreq/17000000.gpu/cur_freq": "624750000\n",
    "sys/class/devfreq/15340000.vic/cur_freq": "115200000\n",  # not the GPU
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "66000\n",
    "sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "61250\n",
    "sys/class/thermal/cooling_device0/type": "pwm-fan\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/thermal/cooling_device1/type": "cpu-throttle-alert\n",
    "sys/class/thermal/cooling_device1/cur_state": "1\n",
    "sys/class/hwmon/hwmon3/oc1_event_cnt": "5\n",
    "sys/class/hwmon/hwmon3/oc3_event_cnt": "7\n",
    "var/lib/nvpmodel/status": "pmode:0002\n",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nX\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n",
}


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_laptop(tmp_path: Path) -> None:
    assert read_conditions(lay_out(tmp_path, LAPTOP)) == Conditions(
        load_average=0.42,
        cpu_mhz=2500.0,
        governor="performance, schedutil",
        temperature_c=63.5,
        throttle_count=9,
        throttled_by=(),
        power_mode="balanced",
        steal_s=2.5,
    )


def test_a_jetson(tmp_path: Path) -> None:
    assert read_conditions(lay_out(tmp_path, JETSON)) == Conditions(
        load_average=0.1,
        cpu_mhz=1510.4,
        governor="schedutil",
        temperature_c=66.0,
        throttle_count=12,
        throttled_by=("cpu-throttle-alert",),
        power_mode="2 (MAXN_SUPER)",
        gpu_mhz=624.8,
        gpu_temperature_c=61.25,
    )


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    assert read_conditions(tmp_path) == Conditions()


def test_this_machine() -> None:
    assert (read_conditions().load_average or 0) >= 0


@pytest.mark.parametrize(
    ("table", "state"),
    [
        ("", GpuState()),
        (
            "1980, 41, Not Active, Not Active, Not Active, Not Active\n",
            GpuState(mhz=1980, temperature_c=41),
        ),
        (
            "1410, 83, Active, Not Active, Active, Not Active\n1980, [N/A], Not Active, Active, Not Active, [N/A]\n",
            GpuState(mhz=1410, temperature_c=83, throttled_by=("the GPU's heat", "the GPU's power limit")),
        ),
    ],
)
def test_what_nvidia_smi_answers(table: str, state: GpuState) -> None:
    assert parse_gpu_state(table) == state


CALM = Conditions(load_average=0.1, cpu_mhz=3000.0, gpu_mhz=1900.0, throttle_count=4, steal_s=10.0, power_mode="0")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"load_average": 1.5}, {}, "busy when the run began: load average 1.5, 2 cores"),
        ({}, {"throttle_count": 5}, "slowed down for its heat or current"),
        ({}, {"throttled_by": ("the GPU's heat",)}, "clocks were held down by the GPU's heat"),
        ({}, {"power_mode": "3"}, "the power mode changed from 0 to 3"),
        ({}, {"cpu_mhz": 2000.0}, "the CPU's frequency fell from 3000 to 2000 MHz"),
        ({}, {"gpu_mhz": 1200.0}, "the GPU's frequency fell from 1900 to 1200 MHz"),
        ({}, {"steal_s": 20.0}, "the host of this virtual machine took 5% of its CPU time"),
        ({"governor": "powersave"}, {}, "governor is 'powersave'"),
    ],
)
def test_disturbances(before: dict, after: dict, message: str) -> None:
    states = [Conditions(**{**vars(CALM), **changes}) for changes in (before, after)]
    (found,) = find_disturbances(*states, num_cores=2, seconds=100.0)
    assert message in found


def test_a_calm_run_has_none() -> None:
    warmer = Conditions(**{**vars(CALM), "load_average": 2.0, "cpu_mhz": 2800.0, "steal_s": 10.5})
    assert find_disturbances(CALM, warmer, num_cores=2, seconds=100.0) == ()
    assert find_disturbances(Conditions(), Conditions(), num_cores=2, seconds=100.0) == ()
