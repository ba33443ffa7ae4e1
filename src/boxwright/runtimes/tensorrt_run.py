"""One run of an engine at a time: an execution context with a stream and memory of its own.

The work of a run goes onto the stream and the CPU goes on. What is the same in each run is recorded as a CUDA graph, as
soon as two runs in a row had the same shapes at the same addresses, and then costs the CPU a single call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from boxwright.core.errors import BoxwrightError, UnsupportedError
from boxwright.runtimes.backend import run_failure
from boxwright.runtimes.cuda_buffers import TensorMemory, copy_into, copy_out_of, find_pinned
from boxwright.runtimes.tensorrt_engine import OpenedEngine, num_bytes, out_of_memory
from boxwright.runtimes.tensorrt_library import tensorrt_log
from boxwright.runtimes.tensorrt_profiles import Shape

Tensors = dict[str, NDArray[Any]]
# TensorRT reads and writes in pieces of this size.
_ALIGNMENT_BYTES = 256


class ProfileInUseError(UnsupportedError):
    """TensorRT before 10 lends an optimisation profile to one context at a time."""


class EngineRun:
    """An execution context; `start` a run, then `finish` it, then the next.

    Attributes:
        graph_problem: why no CUDA graph could be recorded, None where that worked or was not tried.
    """

    def __init__(self, opened: OpenedEngine) -> None:
        self.graph_problem: str | None = None
        self._opened = opened
        self._cuda = opened.cuda
        self._log = tensorrt_log(opened.trt).errors
        self._log.clear()
        self._context = opened.engine.create_execution_context()
        if self._context is None:
            raise out_of_memory(opened.name, self._log.cause)
        is_shared = opened.device.is_integrated
        self._memories = {
            name: TensorMemory(opened.cuda, is_shared=is_shared and name not in opened.host_inputs)
            for name in (*opened.inputs, *opened.outputs)
        }
        self._allocator = _output_allocator(opened.trt, self._memories)
        self._allocated: set[str] = set()
        self._shapes: dict[str, Shape] = {}
        self._addresses: dict[str, int] = {}
        self._output_shapes: dict[str, Shape] = {}
        self._held: list[NDArray[Any]] = []
        self._graph: int | None = None
        self._last_state: object = None
        self._stream = opened.cuda.create_stream()

    def start(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Put a run on the stream.

        Args:
            inputs: all of them, of the right types; they must stay as they are until `finish`.

        Raises:
            InputError: where no optimisation profile takes their shapes.
            UnsupportedError: where the GPU's memory is too small.
            ModelFileError: where TensorRT fails.
        """
        self._log.clear()
        # Unlike ascontiguousarray this leaves a scalar a scalar.
        arrays = {name: np.asarray(inputs[name], order="C") for name in self._opened.inputs}
        shapes: dict[str, Shape] = {name: array.shape for name, array in arrays.items()}
        self._set_shapes(shapes)
        self._held = list(arrays.values())
        copies = [copy for name, array in arrays.items() if (copy := self._place_input(name, array)) is not None]
        self._place_outputs()
        for target, source, size in copies:
            self._cuda.copy_to_device(target, source, size, self._stream)
        self._enqueue()

    def finish(self) -> Tensors:
        """Wait for the run and give its outputs, in memory that no later run touches."""
        self._cuda.synchronize(self._stream)
        self._held = []
        return {
            name: copy_out_of(
                self._memories[name].reserve_host(0), self._shape_of(name), self._opened.outputs[name].dtype
            )
            for name in self._opened.outputs
        }

    def release(self) -> None:
        """Give everything back, after the work on the stream has ended or failed.

        Why it failed is for `finish` to say; after that CUDA may refuse each of these calls.
        """
        if self._context is None:
            return
        with contextlib.suppress(BoxwrightError):
            self._cuda.synchronize(self._stream)
        with contextlib.suppress(BoxwrightError):
            self._forget_graph()
        self._context = None
        self._memories.clear()
        self._held = []
        with contextlib.suppress(BoxwrightError):
            self._cuda.destroy_stream(self._stream)

    def _set_shapes(self, shapes: dict[str, Shape]) -> None:
        if shapes == self._shapes:
            return
        self._forget_graph()
        self._output_shapes = {}
        profile = self._opened.find_profile(shapes)
        context = self._context
        if self._opened.has_open_sizes and context.active_optimization_profile != profile:
            if not context.set_optimization_profile_async(profile, self._stream):
                raise ProfileInUseError(
                    self._opened.name,
                    expected="one run at a time: this TensorRT lends sizes that are open to one run alone",
                    got=self._log.cause,
                    fix="wait for a run before the next, or build the engine for a fixed size",
                )
            self._cuda.synchronize(self._stream)
        for name, shape in shapes.items():
            is_open = None in self._opened.inputs[name].shape
            if is_open and not context.set_input_shape(name, shape):
                raise run_failure("TensorRT", self._log.cause)
        self._shapes = shapes

    def _place_input(self, name: str, array: NDArray[Any]) -> tuple[int, int, int] | None:
        """Tell TensorRT where an input will be, and give the copy (target, source, bytes) that brings it there."""
        memory = self._memories[name]
        pinned = find_pinned(array)
        if pinned is not None and name not in self._opened.host_inputs:
            offset = array.ctypes.data - pinned.address
            if not memory.is_shared:
                address = memory.reserve_device(array.nbytes)
                self._set_address(name, address)
                return address, array.ctypes.data, array.nbytes
            if pinned.device_address is not None and offset % _ALIGNMENT_BYTES == 0:
                self._set_address(name, pinned.device_address + offset)
                return None
        staged = memory.reserve_host(array.nbytes)
        copy_into(staged, array)
        if name in self._opened.host_inputs:
            self._set_address(name, staged.address)
            return None
        address = memory.reserve_device(array.nbytes)
        self._set_address(name, address)
        return None if memory.is_shared else (address, staged.address, array.nbytes)

    def _place_outputs(self) -> None:
        if self._output_shapes and not self._opened.host_inputs and not self._allocated:
            return  # as in the run before
        try:
            incomplete = self._context.infer_shapes()
        except RuntimeError as error:
            raise run_failure("TensorRT", str(error).splitlines()[0]) from error
        assert not incomplete, f"TensorRT wants {incomplete}"
        for name, spec in self._opened.outputs.items():
            shape = tuple(self._context.get_tensor_shape(name))
            self._output_shapes[name] = shape
            if any(size < 0 for size in shape):
                self._leave_to_allocator(name)
                continue
            size = num_bytes(shape, spec)
            self._memories[name].reserve_host(size)
            self._set_address(name, self._memories[name].reserve_device(size))

    def _leave_to_allocator(self, name: str) -> None:
        """Let TensorRT ask for an output's memory, since its size is known during the run alone."""
        if name not in self._allocated and not self._context.set_output_allocator(name, self._allocator):
            raise run_failure("TensorRT", self._log.cause)
        self._allocated.add(name)

    def _set_address(self, name: str, address: int) -> None:
        if self._addresses.get(name) == address:
            return
        self._forget_graph()
        if not self._context.set_tensor_address(name, address):
            raise run_failure("TensorRT", self._log.cause)
        self._addresses[name] = address

    def _enqueue(self) -> None:
        """Put the work on the stream, as a graph where nothing has changed since the run before."""
        if self._graph is not None:
            self._cuda.launch_graph(self._graph, self._stream)
            return
        # TensorRT wants one run after each change before it can be recorded.
        state = (dict(self._shapes), dict(self._addresses))
        may_record = not self._allocated and not self._opened.host_inputs and self.graph_problem is None
        if may_record and state == self._last_state:
            self._record_graph()
        self._last_state = state
        if self._graph is not None:
            self._cuda.launch_graph(self._graph, self._stream)
        else:
            self._put_work()

    def _put_work(self) -> None:
        if not self._context.execute_async_v3(self._stream):
            raise self._allocator.problem or run_failure("TensorRT", self._log.cause)
        for name, spec in self._opened.outputs.items():
            memory, size = self._memories[name], num_bytes(self._shape_of(name), spec)
            target = memory.reserve_host(size)
            if not memory.is_shared and size:
                self._cuda.copy_to_host(target.address, memory.reserve_device(size), size, self._stream)

    def _record_graph(self) -> None:
        """Record the work; where that cannot be done it is done call by call from now on, and the reason kept."""
        self._cuda.begin_capture(self._stream)
        try:
            self._put_work()
        except BoxwrightError as error:
            self.graph_problem = str(error)
        try:
            self._graph = self._cuda.end_capture(self._stream)
        except BoxwrightError as error:
            self.graph_problem = self.graph_problem or str(error)
        if self.graph_problem is not None:
            self._forget_graph()
            self._cuda.clear_error()

    def _forget_graph(self) -> None:
        """Anything that is changed in a context makes what was recorded of it invalid."""
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph)
            self._graph = None

    def _shape_of(self, name: str) -> Shape:
        return self._allocator.shapes[name] if name in self._allocated else self._output_shapes[name]


def _output_allocator(trt: Any, memories: Mapping[str, TensorMemory]) -> Any:
    """A tensorrt.IOutputAllocator that gives the memories' places; `shapes` has what TensorRT said of the outputs."""

    class OutputAllocator(trt.IOutputAllocator):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IOutputAllocator.__init__(self)
            self.shapes: dict[str, Shape] = {}
            self.problem: BoxwrightError | None = None

        def reallocate_output(self, tensor_name: str, memory: Any, size: int, alignment: int) -> int:
            try:
                return memories[tensor_name].reserve_device(size)
            except BoxwrightError as error:  # TensorRT would lose it on the way through its own code
                self.problem = error
                return 0

        def reallocate_output_async(self, tensor_name: str, memory: Any, size: int, alignment: int, stream: int) -> int:
            return self.reallocate_output(tensor_name, memory, size, alignment)

        def notify_shape(self, tensor_name: str, shape: Any) -> None:
            self.shapes[tensor_name] = tuple(shape)

    return OutputAllocator()
