"""How much memory of the NVIDIA GPUs a process holds."""

from __future__ import annotations

import shutil
import subprocess

_NVIDIA_SMI_TIMEOUT_S = 20
_MEBIBYTE_MB = 2**20 / 1e6


class GpuMemoryMeter:
    """Tells a process's memory by its id; in a container, which hides ids, by what has come since it was started."""

    def __init__(self) -> None:
        """Look at the GPUs before the process is started."""
        self._before = _used_mebibytes()

    def used_mb(self, pid: int) -> float | None:
        """Memory that the process holds now, in 10^6 bytes; None without an NVIDIA GPU, or where it holds none.

        Args:
            pid: of the process, the only one that has been started since this meter was made.
        """
        if self._before is None:
            return None
        rows = _ask("--query-compute-apps=pid,used_memory") or []
        of_process = [int(row[1]) for row in rows if len(row) == 2 and row[0] == str(pid) and row[1].isdecimal()]
        mebibytes = sum(of_process) if of_process else (_used_mebibytes() or 0) - self._before
        return round(mebibytes * _MEBIBYTE_MB, 1) if mebibytes > 0 else None


def _used_mebibytes() -> int | None:
    """Memory in use on all GPUs; None where that is not known."""
    rows = _ask("--query-gpu=memory.used")
    known = [int(row[0]) for row in rows or [] if row[0].isdecimal()]
    return sum(known) if known else None


def _ask(query: str) -> list[list[str]] | None:
    """The rows that nvidia-smi answers; None where there is no nvidia-smi, or no GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, query, "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = answer.stdout.splitlines() if answer.returncode == 0 else []
    return [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
