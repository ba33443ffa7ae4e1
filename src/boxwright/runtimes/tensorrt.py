"""TensorRT on NVIDIA GPUs: engines built on the machine that runs them."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import UnsupportedError
from boxwright.runtimes.backend import check_inputs, closed_error
from boxwright.runtimes.cuda_buffers import pinned_array
from boxwright.runtimes.cuda_runtime import has_cuda_python
from boxwright.runtimes.model_file import locate_model_file
from boxwright.runtimes.tensorrt_engine import OpenedEngine, open_engine
from boxwright.runtimes.tensorrt_run import EngineRun, ProfileInUseError

SUFFIXES = (".engine", ".plan")
DEFAULT_DEVICE = "cuda"


def available() -> str | None:
    """None where the engine is installed, else what is missing."""
    if importlib.util.find_spec("tensorrt") is None:
        return "the package tensorrt is not installed"
    return None if has_cuda_python() else "the package cuda-bindings is not installed"


class _Ticket(NamedTuple):
    """A run that is under way."""

    run: EngineRun


class TensorRtBackend:
    """An engine in TensorRT; see `boxwright.runtimes.backend.Backend`.

    Runs that overlap, from several threads or by `submit`, each get an execution context of their own.
    """

    name = "tensorrt"

    def __init__(self, opened: OpenedEngine) -> None:
        self.device = f"cuda:{opened.device.index}"
        # What an engine without a sidecar was built for, it does not say.
        self.precision: str = "as built" if opened.sidecar is None else opened.sidecar.precision
        self.manifest_json = opened.manifest_json
        self.inputs = dict(opened.inputs)
        self.outputs = dict(opened.outputs)
        self.fixed_thresholds = dict(opened.fixed_thresholds)
        self._opened: OpenedEngine | None = opened
        self._cuda = opened.cuda
        self._returned = threading.Condition()
        self._idle: list[EngineRun] = []
        self._num_running = 0
        self._num_submitted = 0

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = DEFAULT_DEVICE,
        precision: str | None = None,
        num_threads: int = 0,
    ) -> TensorRtBackend:
        """Open an engine; see `Backend.open`. `num_threads` has no effect on a GPU."""
        opened = open_engine(locate_model_file(path), device)
        _check_precision(opened, precision)
        return cls(opened)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the engine once; see `Backend.run`."""
        return self._finished(self._started(inputs))

    def submit(self, inputs: Mapping[str, NDArray[Any]]) -> object:
        """Start a run; see `Backend.submit`."""
        ticket = _Ticket(self._started(inputs))
        with self._returned:
            self._num_submitted += 1
        return ticket

    def wait(self, ticket: Any) -> dict[str, NDArray[Any]]:
        """The outputs of a run; see `Backend.wait`."""
        assert isinstance(ticket, _Ticket)
        with self._returned:
            self._num_submitted -= 1
        return self._finished(ticket.run)

    def allocate_input(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """An array that runs take without copying it first: pinned, and where memory is shared the GPU's own input."""
        opened = self._require_open()
        opened.cuda.select(opened.device.index)
        return pinned_array(opened.cuda, shape, dtype, is_shared=opened.device.is_integrated)

    def close(self) -> None:
        """Free the engine; see `Backend.close`. Runs under way are freed when they are waited for."""
        with self._returned:
            opened, self._opened = self._opened, None
            idle, self._idle = self._idle, []
            self._returned.notify_all()
        if opened is not None:
            opened.cuda.select(opened.device.index)
        for run in idle:
            run.release()

    def __enter__(self) -> TensorRtBackend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _started(self, inputs: Mapping[str, NDArray[Any]]) -> EngineRun:
        check_inputs(self.inputs, inputs)
        while True:
            opened = self._require_open()
            opened.find_profile({name: inputs[name].shape for name in self.inputs})
            opened.cuda.select(opened.device.index)
            run = self._take(opened)
            try:
                run.start(inputs)
            except ProfileInUseError:
                self._discard(run)
                if not self._has_waited_for_another():
                    raise
            except BaseException:
                self._discard(run)
                raise
            else:
                return run

    def _finished(self, run: EngineRun) -> dict[str, NDArray[Any]]:
        try:
            self._cuda.select(int(self.device.removeprefix("cuda:")))
            outputs = run.finish()
        except BaseException:
            self._discard(run)
            raise
        with self._returned:
            self._num_running -= 1
            is_open = self._opened is not None
            if is_open:
                self._idle.append(run)
            self._returned.notify()
        if not is_open:
            run.release()
        return outputs

    def _take(self, opened: OpenedEngine) -> EngineRun:
        """An idle context or a new one."""
        with self._returned:
            run = self._idle.pop() if self._idle else EngineRun(opened)
            self._num_running += 1
        return run

    def _discard(self, run: EngineRun) -> None:
        """Let a context go that something went wrong with."""
        with self._returned:
            self._num_running -= 1
            self._returned.notify()
        run.release()

    def _has_waited_for_another(self) -> bool:
        """Wait until a context comes back, where another thread is sure to bring one."""
        with self._returned:
            if self._idle:
                return True
            if self._num_submitted > 0 or self._num_running == 0:
                return False
            self._returned.wait()
            return True

    def _require_open(self) -> OpenedEngine:
        opened = self._opened
        if opened is None:
            raise closed_error("TensorRT")
        return opened


BACKEND = TensorRtBackend


def _check_precision(opened: OpenedEngine, precision: str | None) -> None:
    """Refuse another precision than the engine's, which was settled when it was built."""
    sidecar = opened.sidecar
    if precision is None or sidecar is None or precision == sidecar.precision:
        return
    if sidecar.precision == "int8" and precision == "fp32":
        return  # as everywhere: what calibration left in float is computed in it
    raise UnsupportedError(
        opened.name,
        expected=f"the precision {sidecar.precision}, which the engine was built for",
        got=repr(precision),
        fix="leave the precision out, or build another engine with --format tensorrt --precision " + precision,
    )
