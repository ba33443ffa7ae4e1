"""GPU memory as nvidia-smi tells it, and what is left to know where a container hides the process ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxwright.bench.gpu_memory import GpuMemoryMeter


def install_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *, used: str, apps: str, status: int = 0) -> None:
    """A program of that name which prints these tables."""
    script = f'#!/bin/sh\ncase "$1" in *compute-apps*) printf "{apps}";; *) printf "{used}";; esac\nexit {status}\n'
    path = folder / "nvidia-smi"
    path.write_text(script)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_process_is_found_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, used="500\\n", apps="77, 100\\n42, 300\\n42, 20\\n")
    assert GpuMemoryMeter().used_mb(42) == 335.5  # 320 * 2^20 / 10^6


@pytest.mark.parametrize("apps", ["", "77, 100\\n", "42, [N/A]\\n"])
def test_without_ids_what_came_since_is_its(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apps: str) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, used="500\\n10\\n", apps=apps)
    meter = GpuMemoryMeter()
    install_nvidia_smi(tmp_path, monkeypatch, used="900\\n10\\n", apps=apps)
    assert meter.used_mb(42) == 419.4  # 400 * 2^20 / 10^6


def test_none_is_used_or_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvidia_smi(tmp_path, monkeypatch, used="500\\n", apps="")
    assert GpuMemoryMeter().used_mb(42) is None
    install_nvidia_smi(tmp_path, monkeypatch, used="No devices were found\\n", apps="", status=6)
    assert GpuMemoryMeter().used_mb(42) is None
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert GpuMemoryMeter().used_mb(42) is None
